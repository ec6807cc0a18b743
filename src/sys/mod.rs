#![forbid(unsafe_code)]

pub mod accounts;
