//! The events of one job: a short history and the readers that follow it.
//!
//! A reader has a bounded buffer. When it is full, events are dropped for that reader alone; the last event has a place
//! of its own, reserved when the reader comes, so it always arrives. Nobody ever waits for a reader.

use tokio::sync::mpsc;

use crate::domain::event::{JobEvent, Numbered};

/// Events that a reader may lag behind.
const BUFFER: usize = 32;

/// What happened to a job so far, in short, and who is told what comes.
#[derive(Debug, Default)]
pub struct EventLog {
    count: u64,
    queued: Option<Numbered>,
    started: Option<Numbered>,
    progress: Option<Numbered>,
    preview: Option<Numbered>,
    last: Option<Numbered>,
    readers: Vec<Reader>,
}

#[derive(Debug)]
struct Reader {
    events: mpsc::Sender<Numbered>,
    last: mpsc::OwnedPermit<Numbered>,
}

impl EventLog {
    /// Records an event and tells every reader. After the last event nothing more is recorded.
    pub fn push(&mut self, event: JobEvent) {
        if self.last.is_some() {
            return;
        }
        self.count += 1;
        let numbered = Numbered {
            number: self.count,
            event,
        };
        if numbered.event.is_final() {
            for reader in self.readers.drain(..) {
                reader.last.send(numbered.clone());
            }
        } else {
            self.readers.retain(|reader| !reader.events.is_closed());
            for reader in &self.readers {
                // A full buffer is a slow reader: it misses this one.
                let _ = reader.events.try_send(numbered.clone());
            }
        }
        let slot = self.slot(&numbered.event);
        *slot = Some(numbered);
    }

    /// A new reader: first the history in short after event number `after`, then what comes.
    pub fn subscribe(&mut self, after: Option<u64>) -> mpsc::Receiver<Numbered> {
        let after = after.unwrap_or(0);
        let (events, receiver) = mpsc::channel(BUFFER + 1);
        let Ok(last) = events.clone().try_reserve_owned() else {
            return receiver;
        };
        for past in self.history(after) {
            let _ = events.try_send(past);
        }
        match &self.last {
            Some(numbered) if numbered.number > after => {
                last.send(numbered.clone());
            }
            Some(_) => {}
            None => self.readers.push(Reader { events, last }),
        }
        receiver
    }

    fn history(&self, after: u64) -> Vec<Numbered> {
        let kept = [&self.queued, &self.started, &self.progress, &self.preview];
        let mut past: Vec<_> = kept
            .into_iter()
            .flatten()
            .filter(|past| past.number > after)
            .cloned()
            .collect();
        past.sort_by_key(|past| past.number);
        past
    }

    fn slot(&mut self, event: &JobEvent) -> &mut Option<Numbered> {
        match event {
            JobEvent::Queued { .. } => &mut self.queued,
            JobEvent::Started => &mut self.started,
            JobEvent::Progress { .. } => &mut self.progress,
            JobEvent::Preview { .. } => &mut self.preview,
            JobEvent::Completed(_) | JobEvent::Failed(_) | JobEvent::Cancelled => &mut self.last,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::domain::event::Step;

    fn progress(step: u32) -> JobEvent {
        JobEvent::Progress {
            step: Step { step, total: 1000 },
            elapsed: Duration::ZERO,
            left: Duration::ZERO,
        }
    }

    fn all(receiver: &mut mpsc::Receiver<Numbered>) -> Vec<Numbered> {
        std::iter::from_fn(|| receiver.try_recv().ok()).collect()
    }

    #[test]
    fn a_reader_that_never_reads_still_gets_the_last_event() {
        let mut log = EventLog::default();
        let mut slow = log.subscribe(None);
        log.push(JobEvent::Queued { position: 0 });
        log.push(JobEvent::Started);
        for step in 1..=1000 {
            log.push(progress(step));
        }
        log.push(JobEvent::Cancelled);
        let events = all(&mut slow);
        assert_eq!(events.len(), BUFFER + 1);
        assert_eq!(events.last().unwrap().event, JobEvent::Cancelled);
        assert_eq!(events.last().unwrap().number, 1003);
    }

    #[test]
    fn a_late_reader_gets_the_history_in_short_and_goes_on() {
        let mut log = EventLog::default();
        log.push(JobEvent::Queued { position: 2 });
        log.push(JobEvent::Queued { position: 1 });
        log.push(JobEvent::Started);
        log.push(progress(1));
        log.push(progress(2));
        let mut late = log.subscribe(None);
        log.push(progress(3));
        let numbers: Vec<_> = all(&mut late).iter().map(|event| event.number).collect();
        assert_eq!(numbers, [2, 3, 5, 6]);
    }

    #[test]
    fn a_reader_resumes_after_the_event_it_saw() {
        let mut log = EventLog::default();
        log.push(JobEvent::Started);
        log.push(progress(1));
        log.push(JobEvent::Cancelled);
        let numbers = |mut receiver| all(&mut receiver).iter().map(|event| event.number).collect::<Vec<_>>();
        assert_eq!(numbers(log.subscribe(Some(1))), [2, 3]);
        assert_eq!(numbers(log.subscribe(Some(2))), [3]);
        assert!(numbers(log.subscribe(Some(3))).is_empty());
    }

    #[test]
    fn nothing_follows_the_last_event() {
        let mut log = EventLog::default();
        let mut reader = log.subscribe(None);
        log.push(JobEvent::Cancelled);
        log.push(JobEvent::Started);
        log.push(JobEvent::Cancelled);
        assert_eq!(all(&mut reader).len(), 1);
    }

    #[test]
    fn readers_that_left_are_forgotten() {
        let mut log = EventLog::default();
        drop(log.subscribe(None));
        log.push(JobEvent::Started);
        assert!(log.readers.is_empty());
    }
}
