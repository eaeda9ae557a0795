//! The real program: started as a process, spoken to over HTTP or by its command line, painting with real models.
#![allow(clippy::unwrap_used)]

mod built_in;
mod command_line;
mod folder;
mod process;
mod watched;
mod worker;
