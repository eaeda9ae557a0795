//! `serve`: the worker itself, until SIGTERM or Ctrl-C.

use std::error::Error;
use std::sync::Arc;

use tokio::signal::unix::{SignalKind, signal};

use crate::actors::model::Loader;
use crate::app::{Application, LoraCatalog};
use crate::pipeline;
use crate::settings::Settings;
use crate::weights::lora::LoraDir;

/// Exit code after a second signal, as shells count an interrupt.
const INTERRUPTED: i32 = 130;

/// Serves until it is told to stop.
///
/// # Errors
/// Bad settings, an address that is taken, or an HTTP server that fails. A model that cannot be loaded is none: the
/// worker goes on and says so.
pub fn run(settings: &Settings) -> Result<(), Box<dyn Error>> {
    let options = settings.load_options()?;
    let lora_dir = options.lora_dir.clone().map(LoraDir::new);
    let loras: LoraCatalog = Arc::new(move || lora_dir.as_ref().map(LoraDir::list).unwrap_or_default());
    let loader: Loader = Box::new(move |watch| pipeline::load(&options, watch).map_err(Into::into));
    actix::System::new().block_on(async {
        let application = Application::build(settings, loader, loras)?;
        tracing::info!(
            worker = %settings.worker.id,
            url = %format!("http://{}:{}", settings.server.host, application.port()),
            "listening"
        );
        application.run_until_stopped(stop()?).await?;
        Ok(())
    })
}

/// Resolves at the first SIGTERM or Ctrl-C; the second ends the process at once.
fn stop() -> std::io::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        let mut any = async move || {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        any().await;
        actix::spawn(async move {
            any().await;
            std::process::exit(INTERRUPTED);
        });
    })
}
