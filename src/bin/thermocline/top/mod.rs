//! `top`: a store, live.
//!
//! | module | job |
//! |---|---|
//! | `source` | where looks come from: the socket of an open store |
//! | `redis` | or what a store reports to a Redis server |
//! | `snapshot` | a look, and what came between two |
//! | `view` | a picture of that |
//! | `screen` | the terminal |

#[cfg(feature = "redis")]
mod redis;
mod screen;
mod snapshot;
mod source;
mod view;

pub use source::Socket;

use crate::dirs::tier_dirs;
use crate::failure::{Failure, INTERRUPTED, OK, Outcome};
use crate::interrupt;
use crate::options::StoreArgs;
use clap::Args;
use screen::{Left, show};
use serde_json::json;
use source::Source;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use view::View;

/// Columns of a picture that is printed.
const COLUMNS: u16 = 110;

/// The options of `top`.
#[derive(Debug, Args)]
pub struct TopArgs {
    /// A directory of the store, or the one that its directories are in (as --root)
    #[arg(value_name = "DIR")]
    dirs: Vec<PathBuf>,
    /// Seconds between two looks
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// Print one picture, as text, of what happens in so many seconds, and end
    #[arg(long)]
    once: bool,
    /// Show a store by what it reports to this Redis server (redis://, rediss:// for TLS), on whatever machine it is. Where
    /// the URL has a password, name it in a file: without this, --instance takes `metrics.redis.url` of --config FILE
    #[cfg(feature = "redis")]
    #[arg(long, value_name = "URL", conflicts_with = "dirs")]
    redis: Option<String>,
    /// Which of the stores that report there; not needed where there is one
    #[cfg(feature = "redis")]
    #[arg(long, value_name = "NAME", conflicts_with = "dirs")]
    instance: Option<String>,
    #[command(flatten)]
    store: StoreArgs,
}

impl TopArgs {
    /// The store that is to be looked at on a Redis server, if that was asked for.
    #[cfg(feature = "redis")]
    fn fleet(&self) -> Result<Option<redis::Fleet>, Failure> {
        if self.redis.is_none() && self.instance.is_none() {
            return Ok(None);
        }
        let of_file = self.store.config()?.metrics.redis;
        let url = self.redis.as_deref().or(of_file.url.as_ref().map(thermocline::config::RedisUrl::expose));
        let Some(url) = url else {
            return Err(Failure::usage(
                "--instance: on which server? Give --redis URL, or --config FILE with `metrics.redis.url`",
            ));
        };
        redis::Fleet::find(url, Some(&of_file.prefix), self.instance.as_deref()).map(Some)
    }

    /// The directories one of which has the socket.
    fn directories(&self) -> Result<Vec<PathBuf>, Failure> {
        let mut dirs: Vec<PathBuf> = self.dirs.clone();
        dirs.extend(self.dirs.iter().flat_map(|dir| ["ssd", "hdd", "cold"].map(|tier| dir.join(tier))));
        dirs.extend(tier_dirs(&self.store.config()?).map(|d| d.path.clone()));
        if dirs.is_empty() {
            let why = "no store is named: give a directory of it, --config FILE, or --root DIR";
            return Err(Failure::usage(why));
        }
        for dir in &self.dirs {
            crate::failure::check_dir(dir)?;
        }
        crate::elsewhere::one_store(&dirs)?;
        Ok(dirs)
    }
}

/// Shows a store that is open, until a key ends it.
pub fn top(args: &TopArgs, json: bool) -> Outcome {
    #[cfg(feature = "redis")]
    if let Some(mut fleet) = args.fleet()? {
        return if json { crate::show::json(&fleet.document()?).map(|()| OK) } else { watch(args, fleet) };
    }
    let source = Socket::new(args.directories()?);
    if json {
        let (figures, turns) = source.ask()?;
        crate::show::json(&json!({ "figures": figures, "history": turns }))?;
        return Ok(OK);
    }
    watch(args, source)
}

/// A picture of what comes from a source, or as many as there are until a key ends it.
fn watch(args: &TopArgs, mut source: impl Source + 'static) -> Outcome {
    let every = Duration::from_secs(args.interval);
    if args.once {
        let before = source.look()?;
        std::thread::sleep(every);
        let now = source.look()?;
        let keys = "once";
        let view = View { name: &source.name(), before: Some(&before), now: &now, trouble: None, keys };
        crate::show::text(&view::plain(&view, COLUMNS))?;
        return Ok(OK);
    }
    check_terminal("`thermocline top --once` prints one picture, `thermocline stat --json` the figures")?;
    interrupt::watch_quietly()?;
    Ok(match show(source, every, || false)? {
        Left::Interrupted => INTERRUPTED,
        _ => OK,
    })
}

/// Refuses to be live where nobody could see it.
pub fn check_terminal(instead: &str) -> Result<(), Failure> {
    if screen::is_there() {
        return Ok(());
    }
    Err(Failure::usage(format!("there is no terminal to draw on: {instead}")))
}

/// Shows the store in these directories, which `work` opens, until the work is done. `q` ends the picture, and not the work;
/// Ctrl-C asks the work to stop.
///
/// # Errors
/// The terminal's; the work is done all the same.
pub fn during<T>(directories: Vec<PathBuf>, work: impl FnOnce() -> T) -> (T, Result<(), Failure>) {
    /// The work is done, or has panicked.
    struct Done<'a>(&'a AtomicBool);
    impl Drop for Done<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::SeqCst);
        }
    }
    crate::show::draw_no_bars();
    let over = AtomicBool::new(false);
    let is_over = || over.load(Ordering::SeqCst);
    std::thread::scope(|s| {
        let picture = s.spawn(|| {
            let mut source = Socket::new(directories);
            while source.look().is_err() {
                if is_over() || interrupt::asked() {
                    return Ok(());
                }
                std::thread::sleep(Duration::from_millis(20));
            }
            if show(source, Duration::from_secs(1), is_over)? == Left::Interrupted && !interrupt::asked() {
                interrupt::request();
            }
            Ok(())
        });
        let done = {
            let _done = Done(&over);
            work()
        };
        let shown = picture.join().unwrap_or_else(|_| Err(Failure::failed("the picture ended in a panic")));
        (done, shown)
    })
}
