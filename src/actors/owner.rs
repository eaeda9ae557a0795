//! Jobs that belong to a connection.

use actix::Addr;

use super::jobs::JobsActor;
use super::messages::Cancel;
use crate::domain::job::JobId;

/// Cancels its job when it is dropped before the job has ended: the caller has gone.
///
/// It is made with the job, so it does its work also when the caller goes while the answer to
/// [`Submit`](super::messages::Submit) is on its way.
#[derive(Debug)]
pub struct Owner {
    jobs: Addr<JobsActor>,
    id: JobId,
    ended: bool,
}

impl Owner {
    pub(super) fn new(jobs: Addr<JobsActor>, id: JobId) -> Self {
        Self { jobs, id, ended: false }
    }

    /// The job has ended, or shall go on without its caller.
    pub fn release(&mut self) {
        self.ended = true;
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        if !self.ended {
            tracing::info!(job = %self.id, "the caller has gone");
            self.jobs.do_send(Cancel { id: self.id });
        }
    }
}
