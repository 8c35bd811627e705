//! Many files at once, but not all at once: `aiofiles` with a `Semaphore`.
//!
//! ```text
//! cargo run --example files
//! ```
//!
//! A hundred files are read, eight at a time; the texts come in the order in which they were asked for. One file is missing, one is
//! a folder, one is no text, and the other ninety-seven do not suffer for it.

use std::{
    io::{self, ErrorKind},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use buttress::{ConcurrencyLimit, Error, Policy};
use tokio::{fs, time::timeout};
use tower::BoxError;

const FILES: usize = 100;
const AT_ONCE: usize = 8;
const MISSING: usize = 21;
const A_FOLDER: usize = 42;
const NO_TEXT: usize = 63;

#[tokio::main]
async fn main() -> Result<(), BoxError> {
    // Nothing here takes long; what waits for ever is a fault.
    timeout(Duration::from_secs(9), story()).await.unwrap_or_else(|_| Err("it waits for ever".into()))
}

async fn story() -> Result<(), BoxError> {
    let folder = Folder::new().await?;
    // An open file is a descriptor, of which a process has 1,024 by default on Linux, and a thread of tokio's for each of its calls.
    let policy = Policy::plain("files")
        .concurrency_limit(ConcurrencyLimit::builder().max_in_flight(AT_ONCE).max_queue(FILES))
        .build()?;
    let open = Open::default();

    let mut reads = Vec::new();
    for n in 0..FILES {
        let (policy, open, path) = (policy.clone(), open.clone(), folder.file(n));
        reads.push(tokio::spawn(async move { policy.call(|| read(&path, &open)).await }));
    }
    let mut outcomes = Vec::new();
    for read in reads {
        // They all run; waiting for them in order puts the outcomes in order.
        outcomes.push(read.await?);
    }

    let (mut texts, mut bytes, mut in_place, mut failed) = (0, 0, true, Vec::new());
    println!("{FILES} files, {AT_ONCE} at a time:");
    for (n, outcome) in outcomes.iter().enumerate() {
        match outcome {
            Ok(text) => {
                (texts, bytes) = (texts + 1, bytes + text.len());
                in_place &= *text == content(n);
            }
            Err(error) => {
                println!("  {n:>3}  {error}");
                failed.push((n, error.inner().map(io::Error::kind)));
            }
        }
    }
    let most = open.most.load(SeqCst);
    println!("  {texts} texts of {bytes} bytes, each in its place; {most} files were open at once at the most");
    let expected = [
        (MISSING, Some(ErrorKind::NotFound)),
        (A_FOLDER, Some(ErrorKind::IsADirectory)),
        (NO_TEXT, Some(ErrorKind::InvalidData)),
    ];
    ensure(failed == expected, format_args!("three fail, each for its own reason: {failed:?}"))?;
    ensure(texts == FILES - 3 && in_place, "all others have their text, in the order of the questions")?;
    ensure((2..=AT_ONCE).contains(&most), format_args!("more than one and at most {AT_ONCE} at a time, not {most}"))?;

    // The same with writing: what is written aside and then renamed is there as a whole, or not at all.
    let mut writes = Vec::new();
    for (n, outcome) in outcomes.into_iter().enumerate() {
        let (policy, open, folder) = (policy.clone(), open.clone(), Arc::clone(&folder));
        let Ok(text) = outcome else { continue };
        writes.push(tokio::spawn(async move {
            // The folder of this one is not there, so nothing can be written.
            let path = if n == 7 { folder.0.join("nowhere/7") } else { folder.file(n) };
            policy.call(|| write(&path, text.to_uppercase(), &open)).await
        }));
    }
    let (mut written, mut refused) = (0, Vec::new());
    for write in writes {
        match write.await? {
            Ok(()) => written += 1,
            Err(error) => refused.push(error),
        }
    }
    println!("  {written} written; {}", refused.iter().map(Error::to_string).collect::<Vec<_>>().join("; "));
    ensure(refused.len() == 1 && written == FILES - 4, "one cannot be written, and the others are")?;
    ensure(fs::read_to_string(folder.file(7)).await? == content(7), "that one is as it was")?;
    ensure(
        fs::read_to_string(folder.file(8)).await? == content(8).to_uppercase(),
        "others are as they were told to be",
    )?;
    let most = open.most.load(SeqCst);
    ensure(most <= AT_ONCE, format_args!("all that through one limit, and never more than {AT_ONCE}, not {most}"))
}

async fn read(path: &PathBuf, open: &Open) -> io::Result<String> {
    let _open = open.enter();
    fs::read_to_string(path).await
}

async fn write(path: &PathBuf, text: String, open: &Open) -> io::Result<()> {
    let _open = open.enter();
    let aside = path.with_extension("new");
    fs::write(&aside, text).await?;
    fs::rename(&aside, path).await
}

fn content(n: usize) -> String {
    format!("this is file {n}\n").repeat(n + 1)
}

/// How many are at work, and the most there ever were.
#[derive(Clone, Default)]
struct Open {
    now: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
}

struct Entered(Open);

impl Open {
    fn enter(&self) -> Entered {
        self.most.fetch_max(self.now.fetch_add(1, SeqCst) + 1, SeqCst);
        Entered(self.clone())
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        self.0.now.fetch_sub(1, SeqCst);
    }
}

/// The files. Removed at the end.
struct Folder(PathBuf);

impl Folder {
    async fn new() -> io::Result<Arc<Self>> {
        let folder = Folder(std::env::temp_dir().join(format!("buttress-files-{}", std::process::id())));
        fs::create_dir(&folder.0).await?;
        for n in 0..FILES {
            match n {
                MISSING => {}
                A_FOLDER => fs::create_dir(folder.file(n)).await?,
                NO_TEXT => fs::write(folder.file(n), [0xff, 0xfe]).await?,
                _ => fs::write(folder.file(n), content(n)).await?,
            }
        }
        Ok(Arc::new(folder))
    }

    fn file(&self, n: usize) -> PathBuf {
        self.0.join(format!("{n}.txt"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A claim of this story that is broken ends it with exit code 1.
fn ensure(holds: bool, claim: impl std::fmt::Display) -> Result<(), BoxError> {
    if holds { Ok(()) } else { Err(format!("this did not hold: {claim}").into()) }
}
