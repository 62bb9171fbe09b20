//! placeholder until the name server lands
