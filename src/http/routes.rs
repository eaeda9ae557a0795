//! Which path leads where.

use actix_web::web::{self, ServiceConfig};
use actix_web::{HttpRequest, Resource, Route};

use super::error::ApiError;
use super::{capabilities, health, jobs, metrics, openai, pages, paint, sdapi, status};
use crate::domain::draft::shortened;

/// Every route.
pub fn all(config: &mut ServiceConfig) {
    config
        .service(resource("/txt2img", [web::post().to(paint::txt2img)]))
        .service(resource("/img2img", [web::post().to(paint::img2img)]))
        .service(resource("/inpaint", [web::post().to(paint::inpaint)]))
        .service(resource(
            "/v1/jobs",
            [web::post().to(jobs::create), web::get().to(jobs::list)],
        ))
        .service(resource(
            "/v1/jobs/{id}",
            [web::get().to(jobs::show), web::delete().to(jobs::cancel)],
        ))
        .service(resource("/v1/jobs/{id}/stream", [web::get().to(jobs::stream)]))
        .service(resource("/v1/jobs/{id}/images/{index}", [web::get().to(jobs::image)]))
        .service(resource(
            "/v1/capabilities",
            [web::get().to(capabilities::capabilities)],
        ))
        .service(resource("/health", [web::get().to(health::health)]))
        .service(resource("/ready", [web::get().to(health::ready)]))
        .service(resource("/status", [web::get().to(status::status)]))
        .service(resource("/metrics", [web::get().to(metrics::metrics)]))
        .service(resource("/openapi.json", [web::get().to(pages::openapi)]))
        .service(resource("/docs", [web::get().to(pages::docs)]))
        .service(resource("/docs.css", [web::get().to(pages::docs_style)]))
        .service(resource("/docs.js", [web::get().to(pages::docs_script)]))
        .service(resource("/studio.css", [web::get().to(pages::studio_style)]))
        .service(resource("/studio.js", [web::get().to(pages::studio_script)]))
        .service(resource("/", [web::get().to(pages::studio)]))
        .configure(openai_routes)
        .configure(sdapi_routes)
        .default_service(web::to(not_found));
}

fn openai_routes(config: &mut ServiceConfig) {
    config
        .service(resource(
            "/v1/images/generations",
            [web::post().to(openai::generations)],
        ))
        .service(resource("/v1/images/edits", [web::post().to(openai::edits)]))
        .service(resource("/v1/models", [web::get().to(openai::models)]));
}

fn sdapi_routes(config: &mut ServiceConfig) {
    config
        .service(resource("/sdapi/v1/txt2img", [web::post().to(sdapi::txt2img)]))
        .service(resource("/sdapi/v1/img2img", [web::post().to(sdapi::img2img)]))
        .service(resource("/sdapi/v1/progress", [web::get().to(sdapi::progress)]))
        .service(resource("/sdapi/v1/interrupt", [web::post().to(sdapi::interrupt)]))
        .service(resource("/sdapi/v1/samplers", [web::get().to(sdapi::samplers)]))
        .service(resource("/sdapi/v1/schedulers", [web::get().to(sdapi::schedulers)]))
        .service(resource("/sdapi/v1/sd-models", [web::get().to(sdapi::models)]))
        .service(resource("/sdapi/v1/loras", [web::get().to(sdapi::loras)]))
        .service(resource("/sdapi/v1/upscalers", [web::get().to(sdapi::upscalers)]))
        .service(resource(
            "/sdapi/v1/latent-upscale-modes",
            [web::get().to(sdapi::latent_upscale_modes)],
        ))
        .service(resource("/sdapi/v1/sd-vae", [web::get().to(sdapi::vaes)]))
        .service(resource(
            "/sdapi/v1/options",
            [web::get().to(sdapi::options), web::post().to(sdapi::set_options)],
        ))
        .service(resource("/sdapi/v1/png-info", [web::post().to(sdapi::png_info)]));
}

fn resource<const N: usize>(path: &str, routes: [Route; N]) -> Resource {
    routes
        .into_iter()
        .fold(web::resource(path), Resource::route)
        .default_service(web::to(method_not_allowed))
}

async fn not_found(request: HttpRequest) -> Result<&'static str, ApiError> {
    Err(ApiError::NotFound(format!("path {}", shortened(request.path()))))
}

async fn method_not_allowed(request: HttpRequest) -> Result<&'static str, ApiError> {
    Err(ApiError::MethodNotAllowed(request.method().to_string()))
}
