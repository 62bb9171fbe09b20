//! CRIU's RPC messages, as far as they are used here.
//!
//! Source: field numbers of CRIU 4.2.1, <https://criu.org/RPC>

use prost::{Enumeration, Message};

/// `log_level`: each line is a write of its own while the tree stands still, and only errors are read.
pub const LOG_WARNINGS: i32 = 2;
/// `manage_cgroups_mode`: cgroups are not CRIU's business.
pub const CGROUPS_IGNORE: i32 = 0;
/// `network_lock`: no firewall rules while it works.
pub const NETWORK_LOCK_SKIP: i32 = 3;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Enumeration)]
#[repr(i32)]
pub enum RequestKind {
    Empty = 0,
    Dump = 1,
    Restore = 2,
    Notify = 6,
}

#[derive(Clone, PartialEq, Message)]
pub struct Request {
    #[prost(enumeration = "RequestKind", required, tag = "1")]
    pub kind: i32,
    #[prost(message, optional, tag = "2")]
    pub options: Option<Options>,
    #[prost(bool, optional, tag = "3")]
    pub notify_success: Option<bool>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Options {
    /// A descriptor of whoever asks.
    #[prost(int32, required, tag = "1")]
    pub images_dir_fd: i32,
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
    #[prost(bool, optional, tag = "3")]
    pub leave_running: Option<bool>,
    #[prost(bool, optional, tag = "5")]
    pub tcp_established: Option<bool>,
    #[prost(bool, optional, tag = "7")]
    pub shell_job: Option<bool>,
    #[prost(bool, optional, tag = "8")]
    pub file_locks: Option<bool>,
    #[prost(int32, optional, tag = "9")]
    pub log_level: Option<i32>,
    #[prost(string, optional, tag = "10")]
    pub log_file: Option<String>,
    #[prost(bool, optional, tag = "12")]
    pub notify_scripts: Option<bool>,
    #[prost(string, optional, tag = "13")]
    pub root: Option<String>,
    #[prost(bool, optional, tag = "18")]
    pub link_remap: Option<bool>,
    #[prost(bool, optional, tag = "26")]
    pub rst_sibling: Option<bool>,
    #[prost(int32, optional, tag = "34")]
    pub manage_cgroups_mode: Option<i32>,
    /// Bytes: the largest deleted file that is kept whole.
    #[prost(uint32, optional, tag = "35")]
    pub ghost_limit: Option<u32>,
    #[prost(string, repeated, tag = "37")]
    pub external: Vec<String>,
    #[prost(uint32, optional, tag = "38")]
    pub empty_ns: Option<u32>,
    /// Seconds that stopping the tree may take.
    #[prost(uint32, optional, tag = "45")]
    pub timeout: Option<u32>,
    #[prost(bool, optional, tag = "46")]
    pub tcp_skip_in_flight: Option<bool>,
    #[prost(int32, optional, tag = "64")]
    pub network_lock: Option<i32>,
}

#[derive(Clone, PartialEq, Message)]
pub struct Response {
    #[prost(enumeration = "RequestKind", required, tag = "1")]
    pub kind: i32,
    #[prost(bool, required, tag = "2")]
    pub success: bool,
    #[prost(message, optional, tag = "4")]
    pub restore: Option<Restored>,
    #[prost(message, optional, tag = "5")]
    pub notify: Option<Notification>,
    #[prost(int32, optional, tag = "7")]
    pub errno: Option<i32>,
    #[prost(string, optional, tag = "9")]
    pub message: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Message)]
pub struct Restored {
    #[prost(int32, required, tag = "1")]
    pub pid: i32,
}

#[derive(Clone, PartialEq, Message)]
pub struct Notification {
    /// The stage, such as `post-dump`.
    #[prost(string, optional, tag = "1")]
    pub script: Option<String>,
    /// Of the tree's first process, as the host sees it, where there is one.
    #[prost(int32, optional, tag = "2")]
    pub pid: Option<i32>,
}
