//! Turns a misspelt key into a message that names the right one.

use toml::Table;

/// The first key of a table that is not allowed.
#[must_use]
pub(crate) fn unknown_key<'a>(table: &'a Table, allowed: &[&str]) -> Option<&'a str> {
    table.keys().map(String::as_str).find(|key| !allowed.contains(key))
}

/// `did you mean …?` where something is near, the whole list otherwise.
#[must_use]
pub(crate) fn suggestion(key: &str, allowed: &[&str]) -> String {
    let nearest = allowed.iter().map(|name| (distance(key, name), *name)).min();
    match nearest {
        Some((distance, name)) if distance <= 1 + key.chars().count() / 3 => {
            format!("did you mean `{name}`?")
        }
        _ => format!("known here: {}", allowed.join(", ")),
    }
}

/// Levenshtein distance.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (n, x) in a.chars().take(64).enumerate() {
        let mut diagonal = n;
        let mut left = n + 1;
        let mut next = vec![left];
        for (y, above) in b.chars().zip(row.iter().skip(1)) {
            let cost = diagonal + usize::from(x != y);
            left = cost.min(left + 1).min(above + 1);
            diagonal = *above;
            next.push(left);
        }
        row = next;
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distance_counts_edits() {
        assert_eq!(distance("kitten", "sitting"), 3);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("abc", ""), 3);
        assert_eq!(distance("listen", "listen"), 0);
    }

    #[test]
    fn a_misspelt_key_is_told_the_right_one() {
        assert_eq!(suggestion("lables", &["labels", "layout"]), "did you mean `labels`?");
        assert!(suggestion("colour", &["labels", "layout"]).starts_with("known here: labels"));
    }
}
