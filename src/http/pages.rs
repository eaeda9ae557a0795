//! The static pages: the studio at `/`, the description of the API as JSON and as a page.

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_SECURITY_POLICY, ContentType};

const STUDIO: &str = include_str!("pages/studio.html");
const STUDIO_STYLE: &str = include_str!("pages/studio.css");
const STUDIO_SCRIPT: &str = include_str!("pages/studio.js");
const DOCS: &str = include_str!("pages/docs.html");
const DOCS_STYLE: &str = include_str!("pages/docs.css");
const DOCS_SCRIPT: &str = include_str!("pages/docs.js");
const OPENAPI: &str = include_str!("pages/openapi.json");

/// The pages bring all they need along and load nothing from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; \
                      img-src 'self' data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// `GET /`
pub async fn studio() -> HttpResponse {
    page(STUDIO)
}

/// `GET /docs`
pub async fn docs() -> HttpResponse {
    page(DOCS)
}

/// `GET /studio.css`
pub async fn studio_style() -> HttpResponse {
    part(STYLE, STUDIO_STYLE)
}

/// `GET /studio.js`
pub async fn studio_script() -> HttpResponse {
    part(SCRIPT, STUDIO_SCRIPT)
}

/// `GET /docs.css`
pub async fn docs_style() -> HttpResponse {
    part(STYLE, DOCS_STYLE)
}

/// `GET /docs.js`
pub async fn docs_script() -> HttpResponse {
    part(SCRIPT, DOCS_SCRIPT)
}

/// `GET /openapi.json`
pub async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(OPENAPI)
}

const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

fn part(media_type: &str, text: &'static str) -> HttpResponse {
    HttpResponse::Ok().content_type(media_type).body(text)
}

fn page(text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .body(text)
}
