//! What holds on every route: request ids, the API key, errors in one form, limits of a body, the static pages.

use serde_json::json;

use crate::support::Worker;

#[test]
fn every_answer_carries_a_request_id() {
    let worker = Worker::start();
    for path in ["/health", "/status", "/nowhere", "/txt2img", "/v1/jobs/x"] {
        assert_eq!(worker.get(path).header("x-request-id").len(), 36, "{path}");
        assert_eq!(
            worker
                .get_with(path, &[("x-request-id", "mine-1")])
                .header("x-request-id"),
            "mine-1",
            "{path}"
        );
    }
    let bad = worker.post_with("/txt2img", &[("x-request-id", "mine-2")], &json!({}));
    assert_eq!((bad.status, bad.header("x-request-id")), (400, "mine-2"));
    let good = worker.post_with("/txt2img", &[("x-request-id", "mine-3")], &json!({"prompt": "x"}));
    assert_eq!((good.status, good.header("x-request-id")), (200, "mine-3"));
    let long = "x".repeat(200);
    assert_eq!(
        worker
            .get_with("/health", &[("x-request-id", &long)])
            .header("x-request-id")
            .len(),
        36
    );
}

#[test]
fn errors_have_one_form() {
    let worker = Worker::start();
    for (answer, status, code) in [
        (worker.get("/nowhere"), 404, "not_found"),
        (worker.get("/txt2img"), 405, "method_not_allowed"),
        (worker.post("/health", &json!({})), 405, "method_not_allowed"),
        (worker.delete("/v1/jobs"), 405, "method_not_allowed"),
        (
            worker.post_with("/txt2img", &[("content-type", "text/plain")], &json!({})),
            415,
            "unsupported_media_type",
        ),
        (
            worker.post_with("/v1/jobs", &[("content-type", "multipart/form-data")], &json!({})),
            415,
            "unsupported_media_type",
        ),
    ] {
        assert_eq!(
            (answer.status, answer.code().as_str()),
            (status, code),
            "{}",
            answer.text()
        );
        assert!(!answer.message().is_empty());
        assert_eq!(answer.header("content-type"), "application/json");
    }
    let charset = [
        ("content-type", "application/json; charset=utf-8"),
        ("accept", "application/json"),
    ];
    assert_eq!(
        worker.post_with("/txt2img", &charset, &json!({"prompt": "x"})).status,
        200
    );
}

#[test]
fn a_body_has_a_limit() {
    let worker = Worker::with(|plan| plan.settings.server.max_body_mb = 1);
    for path in ["/txt2img", "/v1/jobs"] {
        let answer = worker.post(path, &json!({"prompt": "x".repeat(1_200_000)}));
        assert_eq!((answer.status, answer.code().as_str()), (413, "too_large"), "{path}");
        assert!(answer.message().contains("1048576"));
    }
    assert_eq!(worker.paint("/txt2img", &json!({"prompt": "x"})).status, 200);
}

#[test]
fn a_key_is_asked_for_on_everything_but_health_and_ready() {
    let worker = Worker::with(|plan| plan.settings.server.api_key = "secret".into());
    for path in ["/health", "/ready"] {
        assert_eq!(worker.get(path).status, 200);
    }
    for path in [
        "/",
        "/status",
        "/metrics",
        "/v1/capabilities",
        "/v1/jobs",
        "/openapi.json",
        "/docs",
        "/nowhere",
    ] {
        let answer = worker.get(path);
        assert_eq!((answer.status, answer.code().as_str()), (401, "unauthorized"), "{path}");
        assert_eq!(answer.header("www-authenticate"), "Bearer");
    }
    assert_eq!(worker.post("/txt2img", &json!({"prompt": "x"})).status, 401);
    for wrong in ["Bearer secreT", "Bearer ", "secret", "Basic !!", "Bearer secret2"] {
        assert_eq!(
            worker.get_with("/status", &[("authorization", wrong)]).status,
            401,
            "{wrong}"
        );
    }
    // The last one is `user:secret`, as a browser sends it.
    for right in ["Bearer secret", "bearer secret", "Basic dXNlcjpzZWNyZXQ="] {
        assert_eq!(
            worker.get_with("/status", &[("authorization", right)]).status,
            200,
            "{right}"
        );
    }
    let headers = [("authorization", "Bearer secret"), ("accept", "application/json")];
    assert_eq!(
        worker.post_with("/txt2img", &headers, &json!({"prompt": "x"})).status,
        200
    );
}

#[test]
fn pages_find_their_styles_and_scripts() {
    let worker = Worker::start();
    for name in ["studio", "docs"] {
        for (ending, media_type) in [("css", "text/css"), ("js", "text/javascript")] {
            let part = worker.get(&format!("/{name}.{ending}"));
            assert_eq!(part.status, 200, "{name}.{ending}");
            assert!(part.header("content-type").starts_with(media_type));
        }
    }
}

#[test]
fn pages_need_nothing_from_elsewhere() {
    let worker = Worker::start();
    for path in ["/", "/docs"] {
        let page = worker.get(path);
        assert_eq!(page.status, 200);
        assert!(page.header("content-type").starts_with("text/html"));
        assert!(page.header("content-security-policy").contains("default-src 'none'"));
        // Browsers ask for an icon of the whole site otherwise, and log that there is none.
        assert!(page.text().contains("rel=\"icon\""), "{path}");
        for outside in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!page.text().contains(outside), "{path} has {outside}");
        }
    }
}
