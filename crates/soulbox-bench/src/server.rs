//! The server under measurement: every route of the API on loopback, and one more that tells what the hosts saw.

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use axum::routing::get;
use axum::serve::ListenerExt;
use axum::{Json, Router};
use soulbox_api::{App, Figures, RateLimits};
use soulbox_control::{Control, ControlSettings, Credentials, Store};
use soulbox_store::{PostgresStore, SqliteStore, postgres_options};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::hosts::{Clock, InstantHosts};

/// The key of the default team. It opens nothing but this process.
pub const KEY: &str = "e2b_00112233445566778899aabbccddeeff00112233";
/// What the hosts saw: `{"late": [ms], "early": N, "live": N}`.
pub const ENDED: &str = "/bench/ended";
/// More than any figure needs.
const MOST_SANDBOXES: u32 = 50_000;

/// Serves until standard input ends.
pub async fn serve(sqlite: Option<PathBuf>, postgres: Option<String>) -> anyhow::Result<()> {
    let store: Arc<dyn Store> = match (sqlite, postgres) {
        (Some(path), None) => Arc::new(SqliteStore::open(&path).await?),
        (None, Some(url)) => Arc::new(PostgresStore::open(postgres_options(&url)?).await?),
        _ => bail!("the records are either in SQLite or in PostgreSQL"),
    };
    let hosts = Arc::new(InstantHosts::new(Clock::start()));
    let mut settings = ControlSettings::new(vec![7; 32], "the-administrator".to_owned());
    settings.max_sandboxes = MOST_SANDBOXES;
    let control = Control::new(store, hosts.clone(), settings);
    let credentials = Credentials {
        api_key: KEY.to_owned(),
        access_token: format!("sk_{KEY}"),
    };
    control
        .recover(&credentials)
        .await
        .context("the records could not be taken up")?;

    let app = App {
        control: control.clone(),
        tls: false,
        domain: None,
        draining: CancellationToken::new(),
        limits: RateLimits::default(),
        figures: Figures::default(),
    };
    let seen = move || async move {
        let ended = hosts.ended();
        Json(serde_json::json!({"late": ended.late, "early": ended.early, "live": ended.live}))
    };
    let router = Router::new()
        .route(ENDED, get(seen))
        .merge(soulbox_api::router(Arc::new(app)));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    println!("{}", listener.local_addr()?);
    let ended = end_of_input();

    let listener = listener.tap_io(|stream| {
        // Answers are single writes; a socket that cannot be set is only slower.
        let _ = stream.set_nodelay(true);
    });
    tokio::select! {
        served = axum::serve(listener, router).into_future() => served?,
        () = control.run(ended) => {}
    }
    control.stop(Duration::from_secs(2)).await;
    Ok(())
}

/// Cancelled when standard input ends. The thread ends with the process.
fn end_of_input() -> CancellationToken {
    let ended = CancellationToken::new();
    let end = ended.clone();
    std::thread::spawn(move || {
        // One that cannot be read is one that has ended.
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        end.cancel();
    });
    ended
}
