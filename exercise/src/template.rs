//! Texts with values that are drawn from a seed: `{a+b}` in a text is the sum of the numbers `a` and `b`.

/// The longest text with its values, in bytes.
const MAX_FILLED: usize = 16 << 20;

/// A value that was drawn.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i64),
    /// A text of small letters.
    Text(String),
}

/// The values from which one is drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Range {
    /// The numbers from the first to the second.
    Numbers(i64, i64),
    /// The texts that have at least so many small letters, and at most so many.
    Letters(i64, i64),
}

/// The values of a task by their names.
pub type Values = Vec<(String, Value)>;

/// Draws the values of a task. The same seed, task and ranges give the same values.
pub fn draw(seed: u64, task: &str, ranges: &[(String, Range)]) -> Values {
    let one = |(name, range): &(String, Range)| {
        let seed = seed ^ hash(task).rotate_left(1) ^ hash(name);
        let value = match *range {
            Range::Numbers(min, max) => Value::Number(within(mix(seed), min, max)),
            Range::Letters(min, max) => {
                let count = u64::try_from(within(mix(seed), min, max)).unwrap_or(0);
                let letter = |at| within(mix(mix(seed ^ at)), b'a'.into(), b'z'.into());
                let letters = (1..=count).map(|at| char::from(u8::try_from(letter(at)).unwrap_or(b'a')));
                Value::Text(letters.collect())
            }
        };
        (name.clone(), value)
    };
    ranges.iter().map(one).collect()
}

/// The number of a range that random bits select.
fn within(random: u64, min: i64, max: i64) -> i64 {
    let count = i128::from(max).saturating_sub(i128::from(min)).saturating_add(1).max(1);
    let offset = i128::from(random).checked_rem(count).unwrap_or(0);
    i64::try_from(i128::from(min).saturating_add(offset)).unwrap_or(min)
}

/// The finalizer of SplitMix64: each bit of the result depends on all bits of the seed.
fn mix(seed: u64) -> u64 {
    let mut bits = seed.wrapping_add(0x9e37_79b9_7f4a_7c15);
    bits = (bits ^ bits >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ bits >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ bits >> 31
}

/// The hash FNV-1a, which is the same on every host.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}

/// Replaces each `{EXPRESSION}` of a text by its value. `{{` and `}}` stand for braces.
///
/// # Errors
/// An expression is wrong, or has a name without a value, or the text becomes too long.
pub fn fill(text: &str, values: &Values) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        filled += before;
        if filled.len() > MAX_FILLED {
            return Err(format!("the text has more than {} MiB with its values", MAX_FILLED >> 20));
        }
        if let Some(after) = from.strip_prefix("{{") {
            filled.push('{');
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            filled.push('}');
            rest = after;
        } else if let Some((inner, after)) = from.strip_prefix('{').and_then(|from| from.split_once('}')) {
            filled += &expression(inner, values)?;
            rest = after;
        } else {
            return Err("a brace has no partner: write {{ or }} for a brace, and {a+b} for a sum".into());
        }
    }
    filled += rest;
    Ok(filled)
}

/// The text of an expression: the name of a text, or a calculation.
fn expression(text: &str, values: &Values) -> Result<String, String> {
    match values.iter().find(|(name, _)| name == text.trim()) {
        Some((_, Value::Text(text))) => Ok(text.clone()),
        _ => evaluate(text, values).map(|number| number.to_string()),
    }
}

/// The value of a sum, difference or product of names and numbers: `a+2*b`.
fn evaluate(text: &str, values: &Values) -> Result<i64, String> {
    let too_large = || format!("{{{text}}} has more than 63 bits");
    let mut sum = 0i64;
    let mut rest = text;
    let mut is_negative = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let mut product = 1i64;
        for factor in term.split('*') {
            product = product.checked_mul(number(factor.trim(), values)?).ok_or_else(too_large)?;
        }
        let added = if is_negative { sum.checked_sub(product) } else { sum.checked_add(product) };
        sum = added.ok_or_else(too_large)?;
        let Some(sign) = after.chars().next() else { return Ok(sum) };
        is_negative = sign == '-';
        rest = after.get(1..).unwrap_or_default();
    }
}

fn number(text: &str, values: &Values) -> Result<i64, String> {
    match values.iter().find(|(name, _)| name == text) {
        Some((_, Value::Number(number))) => return Ok(*number),
        Some((_, Value::Text(_))) => {
            return Err(format!(
                "{text} is a random text, which cannot be calculated with: write {{{text}}}"
            ));
        }
        None => {}
    }
    let constant = vmm::host::parse_number(text).ok().and_then(|number| i64::try_from(number).ok());
    constant.ok_or_else(|| {
        let names: Vec<_> = values.iter().map(|(name, _)| name.as_str()).collect();
        let known = match names.as_slice() {
            [] => "the task has no random values (random = { a = [1, 9] })".to_string(),
            names => format!("the random values of the task are {}", names.join(", ")),
        };
        format!("{{{text}}} is not a number: {known}; write {{{{ for a brace")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_replaced() {
        let values = vec![
            ("a".into(), Value::Number(12)),
            ("b".into(), Value::Number(-3)),
            ("word".into(), Value::Text("xyz".into())),
        ];
        for (text, filled) in [
            ("", ""),
            ("{a} {b}\n", "12 -3\n"),
            ("{a+b}", "9"),
            ("{a - b}|{2*a+b*b-1}", "15|32"),
            ("{{a}}", "{a}"),
            ("0x{0x10}", "0x16"),
            ("{word} { word }", "xyz xyz"),
        ] {
            assert_eq!(fill(text, &values).as_deref(), Ok(filled), "{text}");
        }
        let long = "{word}".repeat(MAX_FILLED / 3 + 2);
        for (text, why) in [
            ("{c}", "random values of the task are a, b, word"),
            ("{word+1}", "cannot be calculated with"),
            ("{a", "no partner"),
            ("a}", "no partner"),
            ("{}", "is not a number"),
            ("{a+}", "is not a number"),
            (long.as_str(), "more than 16 MiB"),
            ("{9223372036854775807+a}", "more than 63 bits"),
            ("{9223372036854775807*a}", "more than 63 bits"),
        ] {
            let error = fill(text, &values).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_numbers_each_time() {
        let range = |name: &str, min, max| (name.to_string(), Range::Numbers(min, max));
        let ranges = vec![
            range("a", 1, 9),
            range("b", i64::MIN, i64::MAX),
            range("c", 5, 5),
            ("word".into(), Range::Letters(2, 4)),
        ];
        let first = draw(7, "task", &ranges);
        assert_eq!(first, draw(7, "task", &ranges));
        assert_ne!(first, draw(8, "task", &ranges));
        assert_ne!(first[1], draw(7, "other", &ranges)[1]);
        assert_eq!(first[2].1, Value::Number(5));
        let all: Vec<_> = (0..200).map(|seed| draw(seed, "", &ranges)).collect();
        let numbers: Vec<_> = all.iter().map(|values| values[0].1.clone()).collect();
        assert!((1..=9).all(|number| numbers.contains(&Value::Number(number))));
        let texts = all.iter().map(|values| match &values[3].1 {
            Value::Text(text) => text.as_str(),
            Value::Number(number) => panic!("{number}"),
        });
        let texts: Vec<_> = texts.collect();
        assert!(texts.iter().all(|text| text.bytes().all(|letter| letter.is_ascii_lowercase())));
        assert!((2..=4).all(|count| texts.iter().any(|text| text.len() == count)));
        assert!(texts.iter().all(|text| (2..=4).contains(&text.len())) && texts.concat().contains('z'));
    }
}
