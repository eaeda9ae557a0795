//! The real program: started as a process, spoken to over HTTP or by its command line, painting with real models.
#![allow(clippy::unwrap_used)]

mod asked;
mod built_in;
mod command_line;
mod emoji;
mod emoji_flux;
mod folder;
mod process;
mod subjects;
mod watched;
mod worker;
