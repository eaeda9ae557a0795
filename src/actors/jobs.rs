//! The jobs actor: admits jobs, hands them to the model one by one, and tells readers what happens.
//!
//! Runs on the main actix system and never blocks: each message touches the table and returns.

use std::time::Duration;

use actix::{Actor, Addr, AsyncContext, Context, Handler, MessageResult, Recipient};
use tokio::sync::{mpsc, watch};

use super::messages::{
    Abandon, Accepted, Begins, Cancel, CancelAll, Cancelled, Done, Drain, Failed, Find, FindResult, Generate, JobsView,
    List, ModelDown, ModelUp, Preview, Progress, Refusal, Submit, Subscribe, Tie,
};
use super::owner::Owner;
use super::table::{Ending, Next, Table};
use crate::domain::event::Numbered;
use crate::domain::job::{JobError, JobErrorKind, JobId, JobSnapshot};

pub use super::table::Bounds;

/// How often old jobs are looked for.
const EXPIRY_PERIOD: Duration = Duration::from_secs(1);

/// See the module.
pub struct JobsActor {
    table: Table,
    model: Recipient<Generate>,
    model_is_up: bool,
    draining: bool,
    view: watch::Sender<JobsView>,
}

impl JobsActor {
    /// An actor that feeds `model` and publishes how it stands in `view`.
    pub fn new(bounds: Bounds, model: Recipient<Generate>, view: watch::Sender<JobsView>) -> Self {
        let actor = Self {
            table: Table::new(bounds),
            model,
            model_is_up: false,
            draining: false,
            view,
        };
        actor.publish();
        actor
    }

    fn publish(&self) {
        self.view.send_replace(self.table.view(self.draining));
    }

    /// Starts the next job if the model is free, and publishes the change.
    fn advance(&mut self) {
        if self.model_is_up
            && let Some(Next { id, request, cancel }) = self.table.start_next()
        {
            tracing::info!(job = %id, "job starts");
            self.model.do_send(Generate { id, request, cancel });
        }
        self.publish();
    }

    fn admit(&mut self, submit: Submit, own: Addr<Self>) -> Result<Accepted, Refusal> {
        let Submit { request, tie } = submit;
        let (key, owned) = match tie {
            Tie::Owned => (None, true),
            Tie::Free(key) => (key, false),
        };
        if let Some((id, same)) = key.as_ref().and_then(|key| self.table.with_key(key)) {
            if !same {
                return Err(Refusal::KeyReused);
            }
            return self.accepted(id, None);
        }
        if self.draining {
            return Err(Refusal::Draining);
        }
        if !self.table.has_room(self.model_is_up) {
            self.table.reject();
            self.publish();
            return Err(Refusal::QueueFull {
                capacity: self.view.borrow().capacity,
                retry_after: self.table.retry_after(),
            });
        }
        let id = self.table.admit(request, key);
        tracing::info!(job = %id, "job accepted");
        let accepted = self.accepted(id, owned.then(|| Owner::new(own, id)));
        self.advance();
        accepted
    }

    fn accepted(&mut self, id: JobId, owner: Option<Owner>) -> Result<Accepted, Refusal> {
        let job = self.table.snapshot(id).ok_or(Refusal::NoModel)?;
        let events = self.table.subscribe(id, None).ok_or(Refusal::NoModel)?;
        Ok(Accepted { job, events, owner })
    }
}

impl Actor for JobsActor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.run_interval(EXPIRY_PERIOD, |actor, _| actor.table.expire());
    }
}

impl Handler<Submit> for JobsActor {
    type Result = Result<Accepted, Refusal>;

    fn handle(&mut self, submit: Submit, ctx: &mut Self::Context) -> Self::Result {
        self.admit(submit, ctx.address())
    }
}

impl Handler<Subscribe> for JobsActor {
    type Result = Option<mpsc::Receiver<Numbered>>;

    fn handle(&mut self, Subscribe { id, after }: Subscribe, _: &mut Self::Context) -> Self::Result {
        self.table.subscribe(id, after)
    }
}

impl Handler<Cancel> for JobsActor {
    type Result = Option<JobSnapshot>;

    fn handle(&mut self, Cancel { id }: Cancel, _: &mut Self::Context) -> Self::Result {
        self.table.cancel(id);
        self.publish();
        self.table.snapshot(id)
    }
}

impl Handler<Find> for JobsActor {
    type Result = Option<JobSnapshot>;

    fn handle(&mut self, Find { id }: Find, _: &mut Self::Context) -> Self::Result {
        self.table.snapshot(id)
    }
}

impl Handler<List> for JobsActor {
    type Result = Vec<JobSnapshot>;

    fn handle(&mut self, _: List, _: &mut Self::Context) -> Self::Result {
        self.table.list()
    }
}

impl Handler<FindResult> for JobsActor {
    type Result = MessageResult<FindResult>;

    fn handle(&mut self, FindResult { id }: FindResult, _: &mut Self::Context) -> Self::Result {
        MessageResult(self.table.result(id))
    }
}

impl Handler<Drain> for JobsActor {
    type Result = ();

    fn handle(&mut self, _: Drain, _: &mut Self::Context) {
        self.draining = true;
        self.publish();
    }
}

impl Handler<CancelAll> for JobsActor {
    type Result = ();

    fn handle(&mut self, _: CancelAll, _: &mut Self::Context) {
        self.table.cancel_all();
        self.publish();
    }
}

impl Handler<Abandon> for JobsActor {
    type Result = ();

    fn handle(&mut self, _: Abandon, _: &mut Self::Context) {
        self.model_is_up = false;
        self.table.abandon_running();
        self.publish();
    }
}

impl Handler<ModelUp> for JobsActor {
    type Result = ();

    fn handle(&mut self, _: ModelUp, _: &mut Self::Context) {
        self.model_is_up = true;
        self.advance();
    }
}

impl Handler<ModelDown> for JobsActor {
    type Result = ();

    fn handle(&mut self, ModelDown { reason }: ModelDown, _: &mut Self::Context) {
        self.model_is_up = false;
        self.table.end_waiting(|| {
            Ending::Failed(JobError {
                kind: JobErrorKind::Unavailable,
                message: format!("the model could not be loaded: {reason}"),
            })
        });
        self.publish();
    }
}

impl Handler<Begins> for JobsActor {
    type Result = ();

    fn handle(&mut self, Begins { id, total }: Begins, _: &mut Self::Context) {
        self.table.begins(id, total);
        self.publish();
    }
}

impl Handler<Progress> for JobsActor {
    type Result = ();

    fn handle(&mut self, Progress { id, step }: Progress, _: &mut Self::Context) {
        self.table.progress(id, step);
        self.publish();
    }
}

impl Handler<Preview> for JobsActor {
    type Result = ();

    fn handle(&mut self, Preview { id, step, image }: Preview, _: &mut Self::Context) {
        self.table.preview(id, step, image);
    }
}

impl Handler<Done> for JobsActor {
    type Result = ();

    fn handle(&mut self, Done { id, generation }: Done, _: &mut Self::Context) {
        tracing::info!(job = %id, total_s = generation.timings.total_s, "job done");
        self.table.end_running(id, Ending::Completed(generation));
        self.advance();
    }
}

impl Handler<Failed> for JobsActor {
    type Result = ();

    fn handle(&mut self, failed: Failed, _: &mut Self::Context) {
        let Failed { id, error, model_lost } = failed;
        tracing::warn!(job = %id, %error, "job failed");
        if model_lost {
            self.model_is_up = false;
        }
        self.table.end_running(id, Ending::Failed(error));
        self.advance();
    }
}

impl Handler<Cancelled> for JobsActor {
    type Result = ();

    fn handle(&mut self, Cancelled { id }: Cancelled, _: &mut Self::Context) {
        tracing::info!(job = %id, "job cancelled");
        self.table.end_running(id, Ending::Cancelled);
        self.advance();
    }
}
