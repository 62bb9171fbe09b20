//! Safe wrappers over single syscalls; the only unsafe code.
