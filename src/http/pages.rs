//! The static pages: the studio at `/`, the description of the API as JSON and as a page.

use actix_web::HttpResponse;
use actix_web::http::header::{CONTENT_SECURITY_POLICY, ContentType};

const STUDIO: &str = include_str!("pages/studio.html");
const DOCS: &str = include_str!("pages/docs.html");
const OPENAPI: &str = include_str!("pages/openapi.json");

/// The pages bring all they need along and load nothing from elsewhere.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
                      img-src 'self' data: blob:; form-action 'none'; frame-ancestors 'none'; base-uri 'none'";

/// `GET /`
pub async fn studio() -> HttpResponse {
    page(STUDIO)
}

/// `GET /docs`
pub async fn docs() -> HttpResponse {
    page(DOCS)
}

/// `GET /openapi.json`
pub async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type(ContentType::json()).body(OPENAPI)
}

fn page(text: &'static str) -> HttpResponse {
    HttpResponse::Ok()
        .content_type(ContentType::html())
        .insert_header((CONTENT_SECURITY_POLICY, POLICY))
        .body(text)
}
