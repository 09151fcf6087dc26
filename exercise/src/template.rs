//! Texts with numbers that are drawn from a seed: `{a+b}` in a text is the sum of the numbers `a` and `b`.

/// The numbers of a task by their names.
pub type Numbers = Vec<(String, i64)>;

/// Draws the numbers of a task. The same seed, task and ranges give the same numbers.
pub fn draw(seed: u64, task: &str, ranges: &[(String, i64, i64)]) -> Numbers {
    let one = |(name, min, max): &(String, i64, i64)| {
        let random = mix(seed ^ hash(task).rotate_left(1) ^ hash(name));
        let count = i128::from(*max).saturating_sub(i128::from(*min)).saturating_add(1).max(1);
        let offset = i128::from(random).checked_rem(count).unwrap_or(0);
        let number = i128::from(*min).saturating_add(offset);
        (name.clone(), i64::try_from(number).unwrap_or(*min))
    };
    ranges.iter().map(one).collect()
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
/// An expression is wrong, or has a name without a number.
pub fn fill(text: &str, numbers: &Numbers) -> Result<String, String> {
    let mut filled = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(['{', '}']) {
        let (before, from) = rest.split_at_checked(at).unwrap_or((rest, ""));
        filled += before;
        if let Some(after) = from.strip_prefix("{{") {
            filled.push('{');
            rest = after;
        } else if let Some(after) = from.strip_prefix("}}") {
            filled.push('}');
            rest = after;
        } else if let Some((inner, after)) = from.strip_prefix('{').and_then(|from| from.split_once('}')) {
            filled += &evaluate(inner, numbers)?.to_string();
            rest = after;
        } else {
            return Err("a brace has no partner: write {{ or }} for a brace, and {a+b} for a sum".into());
        }
    }
    filled += rest;
    Ok(filled)
}

/// The value of a sum, difference or product of names and numbers: `a+2*b`.
fn evaluate(text: &str, numbers: &Numbers) -> Result<i64, String> {
    let too_large = || format!("{{{text}}} has more than 63 bits");
    let mut sum = 0i64;
    let mut rest = text;
    let mut is_negative = false;
    loop {
        let end = rest.find(['+', '-']).unwrap_or(rest.len());
        let (term, after) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let mut product = 1i64;
        for factor in term.split('*') {
            product = product.checked_mul(number(factor.trim(), numbers)?).ok_or_else(too_large)?;
        }
        let added = if is_negative { sum.checked_sub(product) } else { sum.checked_add(product) };
        sum = added.ok_or_else(too_large)?;
        let Some(sign) = after.chars().next() else { return Ok(sum) };
        is_negative = sign == '-';
        rest = after.get(1..).unwrap_or_default();
    }
}

fn number(text: &str, numbers: &Numbers) -> Result<i64, String> {
    if let Some((_, number)) = numbers.iter().find(|(name, _)| name == text) {
        return Ok(*number);
    }
    let constant = vmm::host::parse_number(text).ok().and_then(|number| i64::try_from(number).ok());
    constant.ok_or_else(|| {
        let names: Vec<_> = numbers.iter().map(|(name, _)| name.as_str()).collect();
        let known = match names.as_slice() {
            [] => "the task has no random numbers (random = { a = [1, 9] })".to_string(),
            names => format!("the random numbers of the task are {}", names.join(", ")),
        };
        format!("{{{text}}} is not a number: {known}; write {{{{ for a brace")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_replaced() {
        let numbers = vec![("a".into(), 12), ("b".into(), -3)];
        for (text, filled) in [
            ("", ""),
            ("{a} {b}\n", "12 -3\n"),
            ("{a+b}", "9"),
            ("{a - b}|{2*a+b*b-1}", "15|32"),
            ("{{a}}", "{a}"),
            ("0x{0x10}", "0x16"),
        ] {
            assert_eq!(fill(text, &numbers).as_deref(), Ok(filled), "{text}");
        }
        for (text, why) in [
            ("{c}", "random numbers of the task are a, b"),
            ("{a", "no partner"),
            ("a}", "no partner"),
            ("{}", "is not a number"),
            ("{a+}", "is not a number"),
            ("{9223372036854775807+a}", "more than 63 bits"),
            ("{9223372036854775807*a}", "more than 63 bits"),
        ] {
            let error = fill(text, &numbers).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }

    #[test]
    fn a_seed_gives_the_same_numbers_each_time() {
        let ranges = vec![("a".into(), 1, 9), ("b".into(), i64::MIN, i64::MAX), ("c".into(), 5, 5)];
        let first = draw(7, "task", &ranges);
        assert_eq!(first, draw(7, "task", &ranges));
        assert_ne!(first, draw(8, "task", &ranges));
        assert_ne!(first[1], draw(7, "other", &ranges)[1]);
        assert_eq!(first[2].1, 5);
        let all: Vec<_> = (0..200).map(|seed| draw(seed, "", &ranges)[0].1).collect();
        assert!(
            (1..=9).all(|number| all.contains(&number)) && all.iter().all(|number| (1..=9).contains(number))
        );
    }
}
