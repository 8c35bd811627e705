//! The page of defaults says what is built.

use std::{collections::HashMap, fmt::Debug, time::Duration};

use buttress::{
    Backoff, CircuitBreaker, ConcurrencyLimit, Keyed, LagGuard, Policy, Retry, Shutdown, Throttle,
    circuit_breaker::WhenOpen,
    concurrency_limit::{Aimd, Gradient2, Headroom, Limit, Vegas},
    retry::Budget,
    shutdown::Restart,
};

use crate::support::{ms, secs};

/// What stands in the second column of `defaults.md`, by heading and by the setting's bare name; each of them is looked at once.
struct Page(HashMap<String, String>);

impl Page {
    fn read() -> Self {
        let mut heading = "";
        let mut rows = HashMap::new();
        for line in include_str!("../../src/guide/defaults.md").lines() {
            if let Some(text) = line.strip_prefix("# ") {
                heading = text;
            }
            let cells: Vec<_> = line.split('|').map(str::trim).collect();
            if let ["", setting, default, ..] = cells[..] {
                let before = rows.insert(format!("{heading}: {}", bare(setting)), bare(default));
                assert!(before.is_none() || setting.contains("---") || setting == "setting", "twice: {line}");
            }
        }
        Self(rows)
    }

    /// The row says so, and goes on with a reason at most.
    #[track_caller]
    fn says(&mut self, row: &str, default: &str) {
        let cell = self.0.remove(row).unwrap_or_else(|| panic!("no row `{row}`"));
        let rest = cell.strip_prefix(default);
        let is_word = rest.is_some_and(|rest| !rest.starts_with(|next: char| next.is_alphanumeric() || next == '.'));
        assert!(is_word, "{row} is {default}, but the page has: {cell}");
    }
}

/// Without links and code marks.
fn bare(cell: &str) -> String {
    let mut text = String::new();
    let mut rest = cell;
    while let Some((before, link)) = rest.split_once("](") {
        text += before;
        rest = link.split_once(')').map_or("", |(_, after)| after);
    }
    (text + rest).replace(['[', ']', '`'], "")
}

/// The value of this field, as `{:?}` shows it: `20s` is `20 s`, and `None` is `none`.
#[track_caller]
fn field(shown: &impl Debug, name: &str) -> String {
    let shown = format!("{shown:?}");
    let (_, value) = shown.split_once(&format!(" {name}: ")).unwrap_or_else(|| panic!("no {name} in {shown}"));
    let end = value.find([',', '}', ')', ' ']).unwrap_or(value.len());
    let value = value[..end].trim_start_matches("Some(");
    match value.find(|unit: char| unit.is_alphabetic()) {
        _ if value == "None" => "none".to_owned(),
        Some(unit) if unit > 0 => format!("{} {}", &value[..unit], &value[unit..]),
        _ => value.trim_end_matches(".0").to_owned(),
    }
}

#[test]
fn retries() {
    let mut page = Page::read();
    let retry = Retry::exponential(ms(1));
    for setting in ["max_attempts", "max_retry_after"] {
        page.says(&format!("Retry: {setting}"), &field(&retry, setting));
    }
    for setting in ["factor", "max_delay", "jitter"] {
        page.says(&format!("Backoff: {setting}"), &field(&Backoff::exponential(ms(1)), setting));
        assert_eq!(field(&retry, setting), field(&Backoff::exponential(ms(1)), setting));
    }
    assert_eq!(field(&Backoff::constant(secs(21)), "max_delay"), "21 s", "or the first delay");
    for setting in ["ratio", "min_per_second"] {
        page.says(&format!("Budget: {setting}"), &field(&Budget::builder(), setting));
        assert_eq!(field(&retry, setting), field(&Budget::builder(), setting));
    }
    let balance = retry.build().unwrap().budget().unwrap().balance();
    page.says("Budget: the span", &format!("{balance} s")); // one a second
}

#[test]
fn a_circuit_breaker() {
    let mut page = Page::read();
    let breaker = CircuitBreaker::builder();
    let settings = [
        "failure_rate",
        "min_calls",
        "slow_call_rate",
        "slow_call",
        "consecutive_failures",
        "probes",
        "probe_failure_rate",
        "probe_lease",
    ];
    for setting in settings {
        page.says(&format!("CircuitBreaker: {setting}"), &field(&breaker, setting));
    }
    assert_eq!(field(&breaker, "then_probes"), "[]");
    page.says("CircuitBreaker: then_probes", "none: then all");
    assert!(format!("{breaker:?}").contains("span: Time(10s)"), "{breaker:?}");
    page.says("CircuitBreaker: window", "10 s");
    page.says("CircuitBreaker: open_time", &format!("{}, doubling", field(&breaker, "base")));
    assert_eq!(field(&breaker, "factor"), "2");
    page.says("CircuitBreaker: open_time's cap", &field(&breaker, "max_delay"));
    page.says("CircuitBreaker: open_time's jitter", &field(&breaker, "jitter"));
    assert_eq!(field(&breaker, "count_throttled"), "true");
    page.says("CircuitBreaker: when_open", &format!("{:?}", WhenOpen::default()));
}

#[test]
fn throttles() {
    let mut page = Page::read();
    let (google, envoy) = (Throttle::google(), Throttle::envoy());
    for setting in ["window", "aggression", "max_rejection", "min_calls_per_second"] {
        page.says(&format!("Throttle: {setting}"), &field(&google, setting));
    }
    for setting in ["window", "max_rejection"] {
        page.says(&format!("Throttle: envoy: {setting}"), &field(&envoy, setting));
    }
    for setting in ["aggression", "min_calls_per_second"] {
        assert_eq!(field(&google, setting), field(&envoy, setting));
    }
    let allowed = |shown: &str| {
        shown.trim_start_matches("Multiplier(").trim_start_matches("Rate(").trim_end_matches(".0").to_owned()
    };
    page.says("Throttle: multiplier", &allowed(&field(&google, "allowance")));
    page.says("Throttle: envoy: accept_rate", &allowed(&field(&envoy, "allowance")));
}

#[test]
fn a_lag_guard() {
    let mut page = Page::read();
    let guard = LagGuard::builder();
    page.says("LagGuard: max_lag", &field(&guard, "max_lag"));
    page.says("LagGuard: period", &field(&guard, "period"));
}

#[test]
fn limits() {
    let mut page = Page::read();
    let limit = ConcurrencyLimit::builder();
    assert!(limit.clone().build().is_err());
    page.says("ConcurrencyLimit: max_in_flight", "none: it must be set");
    assert_eq!(field(&limit, "partitions"), "[]");
    page.says("ConcurrencyLimit: partition", "none");
    for setting in ["max_wait", "hold_back", "discipline"] {
        let shown = setting.replace("hold_back", "holds_back");
        page.says(&format!("ConcurrencyLimit: {setting}"), &field(&limit, &shown));
    }

    /// Says what it is asked to be.
    #[derive(Clone, Debug)]
    struct At(f64);
    impl Limit for At {
        fn initial(&self) -> f64 {
            self.0
        }
        fn update(&mut self, limit: f64, _: &buttress::concurrency_limit::Sample) -> f64 {
            limit
        }
    }
    let most = limit.adaptive(At(f64::MAX)).build().unwrap().max_in_flight();
    page.says("ConcurrencyLimit: max_in_flight, of an adaptive limit", &most.to_string());

    let begins: [(&str, &dyn Limit); 4] = [
        ("Headroom", &Headroom::default()),
        ("Aimd", &Aimd::default()),
        ("Vegas", &Vegas::default()),
        ("Gradient2", &Gradient2::default()),
    ];
    for (name, limit) in begins {
        page.says(&format!("ConcurrencyLimit: {name}"), &limit.initial().to_string());
    }
    let page = include_str!("../../src/guide/defaults.md");
    for (limit, setting) in [(begins[1].1, "slow"), (begins[2].1, "smoothing"), (begins[3].1, "tolerance")] {
        let says = format!("`{setting}` {}", field(&limit, setting));
        assert!(page.contains(&says), "{says}");
    }
}

#[tokio::test(start_paused = true)]
async fn as_many_wait_as_may_be_in_flight() {
    Page::read().says("ConcurrencyLimit: max_queue", "as max_in_flight");
    let limit = ConcurrencyLimit::builder().max_in_flight(2).build().unwrap();
    let _held = [limit.try_acquire().unwrap(), limit.try_acquire().unwrap()];
    let mut waiting = [limit.acquire(), limit.acquire()].map(Box::pin);
    for wait in &mut waiting {
        assert!(futures_util::poll!(wait).is_pending());
    }
    assert_eq!(limit.acquire().await.unwrap_err().rule(), buttress::Rule::QueueFull);
}

#[test]
fn policies() {
    let mut page = Page::read();
    let nothing = Policy::plain("nothing").build().unwrap();
    for setting in ["deadline", "retry", "circuit_breaker", "throttle", "concurrency_limit", "timeout"] {
        page.says(&format!("Policy: {setting}"), &field(&nothing, setting));
    }

    let standard = Policy::standard("standard");
    for (row, shown) in [
        ("retry: max_attempts", "max_attempts"),
        ("retry: max_delay", "max_delay"),
        ("retry: budget.ratio", "ratio"),
        ("retry: budget.min_per_second", "min_per_second"),
        ("limit: hold_back", "holds_back"),
        ("limit: discipline", "discipline"),
        ("limit: max_queue", "max_queue"),
        ("limit: max_wait", "max_wait"),
        ("deadline, timeout, circuit_breaker, throttle", "deadline"),
        ("limit: adaptive", "adaptive"),
    ] {
        let shown = field(&standard, shown);
        page.says(&format!("Policy::standard: {row}"), shown.trim_start_matches("Strategy("));
    }
    page.says("Policy::standard: retry: backoff", &format!("{}, doubling", field(&standard, "base")));
    let built = standard.build().unwrap();
    assert!(built.circuit_breaker().is_none() && built.throttle().is_none() && field(&built, "timeout") == "none");
}

#[test]
fn what_else_there_is() {
    let mut page = Page::read();
    let keyed = Keyed::<u8, _>::each(CircuitBreaker::builder()).build().unwrap();
    page.says("Keyed: max_keys", &keyed.max_keys().to_string());
    for setting in ["lame_duck", "total", "abort_grace"] {
        page.says(&format!("Shutdown: {setting}"), &field(&Shutdown::builder(), setting));
    }
    let restart = Restart::always(Backoff::constant(Duration::ZERO));
    page.says("Shutdown: Restart::max", &format!("{} in {}", field(&restart, "max"), field(&restart, "per")));

    #[cfg(feature = "http")]
    {
        let cap = buttress::http::ReplayLayer::DEFAULT_CAP;
        page.says("Replay: ReplayLayer::DEFAULT_CAP", &format!("{cap} bytes"));
    }
    #[cfg(feature = "testing")]
    {
        use buttress::testing::{Chaos, Simulation};
        page.says("Testing: Simulation::cases", &field(&Simulation::new(), "cases"));
        page.says("Testing: Simulation::longest", &field(&Simulation::new(), "longest"));
        let chaos = Chaos::<()>::builder();
        let rates = ["seed", "errors", "hangs", "panics"].map(|setting| field(&chaos, setting));
        assert_eq!(rates, ["0"; 4]);
        page.says("Testing: Chaos: each rate, and the seed", "0");
    }
    #[cfg(feature = "signal")]
    {
        let signals = format!("{:?}", buttress::shutdown::Signals::default());
        assert_eq!(signals, "Signals { which: [Terminate, Interrupt, Hangup] }");
        page.says("Shutdown: Signals::default", "SIGTERM, SIGINT, SIGHUP");
    }
}

#[tokio::test(start_paused = true)]
async fn of_a_layer_that_counts_calls() {
    let shutdown = Shutdown::builder().build().unwrap();
    let layer = shutdown.handle().layer();
    Page::read().says("Shutdown: InFlightLayer::retry_after", &field(&layer, "retry_after"));
}

/// Whoever finds a recipe by its name finds the example too.
#[test]
fn every_example_that_the_recipes_name_is_there_and_runs_in_the_gate() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let gate = std::fs::read_to_string(root.join(".ci/run")).unwrap();
    let rows = include_str!("../../src/guide/recipes.md").lines();
    let rows = rows.skip_while(|line| !line.ends_with("| example |")).skip(2).take_while(|line| line.starts_with('|'));
    let mut named = Vec::new();
    for row in rows {
        let cell = row.trim_end_matches('|').rsplit('|').next().unwrap();
        named.extend(cell.split(',').map(|name| name.trim().trim_matches('`')).filter(|name| !name.is_empty()));
    }
    assert!(named.len() >= 15, "{named:?}");
    for name in named {
        let there = [format!("examples/{name}.rs"), format!("examples/{name}/main.rs")];
        assert!(there.iter().any(|file| root.join(file).exists()), "no example `{name}`");
        assert!(gate.contains(&format!("--example {name}")), "`{name}` does not run in the gate");
    }
}
