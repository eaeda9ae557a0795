//! Which of the three kinds of answer a caller wants.

use actix_web::HttpRequest;
use actix_web::http::header::ACCEPT;

use crate::domain::picture::OutputFormat;

/// The kinds of answer to `/txt2img`, `/img2img` and `/inpaint`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Events as they happen.
    Events,
    /// One JSON object when all is done.
    Json,
    /// The first picture's bytes, in a certain format if the caller names one.
    Picture(Option<OutputFormat>),
}

impl Answer {
    /// From the `Accept` header: the known type with the highest weight, events where there is none.
    pub fn wanted(request: &HttpRequest) -> Self {
        let headers = request.headers().get_all(ACCEPT);
        let mut best = (Self::Events, 0.0);
        for part in headers
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
        {
            let (name, weight) = part_of(part);
            if let Some(answer) = Self::named(&name)
                && weight > best.1
            {
                best = (answer, weight);
            }
        }
        best.0
    }

    /// The picture format that the header asks for.
    pub fn format(self) -> Option<OutputFormat> {
        match self {
            Self::Events | Self::Json => None,
            Self::Picture(format) => format,
        }
    }

    fn named(name: &str) -> Option<Self> {
        match name {
            "text/event-stream" | "*/*" | "text/*" => Some(Self::Events),
            "application/json" | "application/*" => Some(Self::Json),
            "image/*" => Some(Self::Picture(None)),
            name => OutputFormat::ALL
                .into_iter()
                .find(|format| format.media_type() == name)
                .map(|format| Self::Picture(Some(format))),
        }
    }
}

fn part_of(part: &str) -> (String, f32) {
    let mut pieces = part.split(';');
    let name = pieces.next().unwrap_or_default().trim().to_ascii_lowercase();
    let weight = pieces
        .find_map(|piece| piece.trim().strip_prefix("q=")?.parse().ok())
        .unwrap_or(1.0);
    (name, weight)
}

#[cfg(test)]
mod tests {
    use actix_web::test::TestRequest;

    use super::*;

    #[test]
    fn the_heaviest_known_type_wins() {
        for (header, expected) in [
            ("", Answer::Events),
            ("*/*", Answer::Events),
            ("text/event-stream", Answer::Events),
            ("application/json", Answer::Json),
            ("application/json, text/event-stream;q=0.5", Answer::Json),
            (
                "application/json;q=0.1, IMAGE/PNG",
                Answer::Picture(Some(OutputFormat::Png)),
            ),
            ("image/webp", Answer::Picture(Some(OutputFormat::Webp))),
            ("image/*", Answer::Picture(None)),
            ("text/html, application/json;q=0", Answer::Events),
        ] {
            let request = TestRequest::default().insert_header((ACCEPT, header)).to_http_request();
            assert_eq!(Answer::wanted(&request), expected, "{header}");
        }
    }
}
