//! Turns families and labels into PromQL.
//!
//! A panel on a quiet node shows zero, not "No data": what has no value becomes a series `idle` at zero.

/// What a family is narrowed by: those of the reader's choices whose label it has.
#[derive(Clone, Copy)]
pub(super) enum By {
    /// Versions.
    Versions,
    /// The kind of job, and versions.
    Flow,
    /// The kind of job and FreeCAD's version (a family without OCCT's).
    Stage,
    /// Versions and namespace.
    Pods,
    /// Nothing but the node.
    Node,
}

impl By {
    fn matchers(self) -> &'static str {
        match self {
            Self::Versions => {
                r#"instance=~"$node",freecad_version=~"$freecad_version",occt_version=~"$occt_version""#
            }
            Self::Flow => {
                r#"instance=~"$node",flow_type=~"$flow_type",freecad_version=~"$freecad_version",occt_version=~"$occt_version""#
            }
            Self::Stage => r#"instance=~"$node",flow_type=~"$flow_type",freecad_version=~"$freecad_version""#,
            Self::Pods => {
                r#"instance=~"$node",namespace=~"$namespace",freecad_version=~"$freecad_version",occt_version=~"$occt_version""#
            }
            Self::Node => r#"instance=~"$node""#,
        }
    }
}

/// `family{…}`.
pub(super) fn select(family: &str, by: By) -> String {
    format!("{family}{{{}}}", by.matchers())
}

/// `family{…,more}`.
pub(super) fn select_where(family: &str, by: By, more: &str) -> String {
    format!("{family}{{{},{more}}}", by.matchers())
}

/// Rate of a counter, summed over these labels (`""`: over all).
pub(super) fn rate(family: &str, by: By, over: &str) -> String {
    summed(&format!("rate({}[$__rate_interval])", select(family, by)), over)
}

/// What a counter rose by in the time that the reader looks at. A series that did not exist at its beginning counts from
/// zero, where `increase` would begin with its first sample.
pub(super) fn gained(counter: &str, over: &str) -> String {
    summed(&gain(counter), over)
}

/// The same for each series.
pub(super) fn gain(counter: &str) -> String {
    format!("({counter} unless {counter} offset $__range) or increase({counter}[$__range])")
}

/// Share of what these matchers choose of a counter, by one label; 0 where it has not happened.
pub(super) fn share(counter: &str, by: By, more: &str, over: &str, count: impl Fn(&str) -> String) -> String {
    let grouped = |what: &str| summed(&count(what), over);
    let (part, all) = (grouped(&select_where(counter, by, more)), grouped(&select(counter, by)));
    format!("({part} or 0 * {all}) / {all}")
}

/// `sum by (over) (what)`.
pub(super) fn summed(what: &str, over: &str) -> String {
    if over.is_empty() { format!("sum({what})") } else { format!("sum by ({over}) ({what})") }
}

/// A quantile of a histogram over these labels.
pub(super) fn quantile(quantile: f64, family: &str, by: By, over: &str) -> String {
    let by_bucket = if over.is_empty() { "le".to_owned() } else { format!("le, {over}") };
    let rate = rate(&format!("{family}_bucket"), by, &by_bucket);
    format!("histogram_quantile({quantile}, {rate})")
}

/// Buckets of a histogram: how many fell into each, in each step.
pub(super) fn buckets(family: &str, by: By) -> String {
    let increase = format!("increase({}[$__rate_interval])", select(&format!("{family}_bucket"), by));
    or_idle(&summed(&increase, "le"), "le", "+Inf")
}

/// Zero instead of nothing. What is not a number (a quantile without observations) is nothing.
pub(super) fn or_zero(what: &str) -> String {
    format!("({what}) >= 0 or on() vector(0)")
}

/// The same for what can be negative.
pub(super) fn any_or_zero(what: &str) -> String {
    format!("({what}) > -Inf or on() vector(0)")
}

/// The same for a query that gives one series for each value of a label: its zero has this label.
pub(super) fn or_idle(what: &str, label: &str, value: &str) -> String {
    format!(r#"({what}) >= 0 or on() label_replace(vector(0), "{label}", "{value}", "", "")"#)
}

/// A quantile for each value of the first of these labels, or idle.
pub(super) fn quantile_or_idle(q: f64, family: &str, by: By, over: &str) -> String {
    let label = over.split(',').next().unwrap_or(over).trim();
    or_idle(&quantile(q, family, by, over), label, "idle")
}

/// A rate for each value of the first of these labels, or idle.
pub(super) fn rate_or_idle(family: &str, by: By, over: &str) -> String {
    let label = over.split(',').next().unwrap_or(over).trim();
    or_idle(&rate(family, by, over), label, "idle")
}
