//! The table of settings: one row gives a setting its place in the tree, its flag and its names in the environment.

/// One setting.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// `section.name` in the configuration tree.
    pub path: &'static str,
    /// Its flag, without the dashes.
    pub flag: &'static str,
    /// Another flag that means the same.
    pub alias: Option<&'static str>,
    /// Name in the environment, as a hive sets it; `SD_WORKER_` before it works for every key and wins.
    pub env: &'static str,
    /// What `--help` says.
    pub help: &'static str,
    /// Whether it also applies to commands that paint without a server.
    pub paints: bool,
}

/// Prefix of every setting in the environment.
pub const ENV_PREFIX: &str = "SD_WORKER_";

impl Key {
    /// Whether `-h` leaves it to `--help`.
    pub fn is_rare(&self) -> bool {
        const COMMON: [&str; 5] = ["worker", "model", "server", "hive", "log"];
        const DETAILS: [&str; 7] = [
            "hive.retry_first_ms",
            "hive.retry_longest_ms",
            "server.threads",
            "server.keep_alive_s",
            "server.max_body_mb",
            "server.public_url",
            "server.grace_s",
        ];
        let section = self.path.split('.').next().unwrap_or_default();
        !COMMON.contains(&section) || DETAILS.contains(&self.path)
    }

    /// Names in the environment, the stronger first.
    ///
    /// `HOST` alone is not read: some shells export the machine's name under it.
    pub fn env_names(&self) -> Vec<String> {
        let mut names = vec![format!("{ENV_PREFIX}{}", self.env)];
        if self.env != "HOST" {
            names.push(self.env.to_owned());
        }
        names
    }
}

const fn server(path: &'static str, flag: &'static str, env: &'static str, help: &'static str) -> Key {
    Key {
        path,
        flag,
        alias: None,
        env,
        help,
        paints: false,
    }
}

const fn paints(path: &'static str, flag: &'static str, env: &'static str, help: &'static str) -> Key {
    Key {
        path,
        flag,
        alias: None,
        env,
        help,
        paints: true,
    }
}

/// Every setting, in the order of `--help`.
pub const KEYS: &[Key] = &[
    server("worker.id", "worker-id", "WORKER_ID", "Name of this worker"),
    Key {
        alias: Some("model"),
        ..paints(
            "model.name",
            "sd-version",
            "SD_VERSION",
            "Model: preset, hub id (owner/name[@revision]), or path; none for the built-in one",
        )
    },
    server("server.host", "host", "HOST", "Address to listen on"),
    server("server.port", "port", "PORT", "Port to listen on, 0 for a free one"),
    server("hive.callback_url", "callback-url", "CALLBACK_URL", "URL of the hive"),
    server("hive.token", "hive-token", "HIVE_TOKEN", "Bearer token for the hive"),
    server(
        "hive.heartbeat_s",
        "heartbeat",
        "HEARTBEAT",
        "Seconds between heartbeats",
    ),
    server(
        "hive.retry_first_ms",
        "hive-retry-first",
        "HIVE_RETRY_FIRST",
        "First wait before a retry, ms",
    ),
    server(
        "hive.retry_longest_ms",
        "hive-retry-longest",
        "HIVE_RETRY_LONGEST",
        "Longest wait before a retry, ms",
    ),
    paints("model.device", "device", "DEVICE", "auto, cpu, cuda[:N] or metal"),
    paints("model.dtype", "dtype", "DTYPE", "auto, f32, bf16 or f16"),
    paints(
        "model.vae",
        "vae",
        "VAE",
        "VAE folder or file to use instead of the model's",
    ),
    server(
        "model.taesd",
        "taesd",
        "TAESD",
        "TAESD folder or file, for sharper previews",
    ),
    paints(
        "model.tokenizer_2",
        "tokenizer-2",
        "TOKENIZER_2",
        "tokenizer.json of T5, for FLUX files",
    ),
    paints(
        "model.residency",
        "residency",
        "RESIDENCY",
        "Text encoders after use: keep, offload or sequential",
    ),
    paints(
        "model.step_cache",
        "step-cache",
        "STEP_CACHE",
        "Reuse between steps: off, auto or a threshold",
    ),
    paints("model.lora_dir", "lora-dir", "LORA_DIR", "Folder of LoRA files"),
    paints(
        "compute.threads",
        "threads",
        "THREADS",
        "Threads of the CPU work, 0 for one a core",
    ),
    server(
        "compute.niceness",
        "niceness",
        "NICENESS",
        "Niceness of the model's threads, 0 to 19",
    ),
    server(
        "queue.capacity",
        "queue-capacity",
        "QUEUE_CAPACITY",
        "Jobs that may wait",
    ),
    server(
        "queue.keep_jobs",
        "keep-jobs",
        "KEEP_JOBS",
        "Finished jobs kept at most",
    ),
    server(
        "queue.keep_mb",
        "keep-mb",
        "KEEP_MB",
        "MiB of finished pictures kept at most",
    ),
    server("queue.keep_s", "keep", "KEEP", "Seconds a finished job is kept"),
    server(
        "server.api_key",
        "api-key",
        "API_KEY",
        "Bearer token that callers must send",
    ),
    server(
        "server.public_url",
        "public-url",
        "PUBLIC_URL",
        "URL under which the hive reaches this worker",
    ),
    server(
        "server.threads",
        "http-threads",
        "HTTP_THREADS",
        "Threads that serve HTTP",
    ),
    server(
        "server.max_body_mb",
        "max-body",
        "MAX_BODY",
        "Largest request body, MiB",
    ),
    server(
        "server.keep_alive_s",
        "keep-alive",
        "KEEP_ALIVE",
        "Seconds between keep-alives on a stream",
    ),
    server(
        "server.grace_s",
        "grace",
        "GRACE",
        "Seconds that jobs get to finish after SIGTERM",
    ),
    paints(
        "limits.max_side",
        "max-side",
        "MAX_SIDE",
        "Largest width and height, pixels",
    ),
    paints(
        "limits.max_images",
        "max-images",
        "MAX_IMAGES",
        "Most pictures of one job",
    ),
    paints(
        "limits.max_image_mb",
        "max-image",
        "MAX_IMAGE",
        "Largest input picture, MiB",
    ),
    paints(
        "limits.max_image_megapixels",
        "max-image-megapixels",
        "MAX_IMAGE_MEGAPIXELS",
        "Largest input picture, million pixels",
    ),
    paints("log.format", "log-format", "LOG_FORMAT", "pretty or json"),
    paints(
        "log.level",
        "log-level",
        "LOG_LEVEL",
        "Level or filter, for example info",
    ),
];
