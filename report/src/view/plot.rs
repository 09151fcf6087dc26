//! The latencies of a page: a histogram for each site, over one logarithmic axis.

use crate::profile::{SavedSite, SavedTimes};
use crate::view::labels::{self, Labels};
use crate::view::markup::{escape, legend, time};
use crate::view::profile::{UNCLAIMED, UNNAMED, total};
use crate::view::table::{Cell, plural};
use crate::view::{Source, compare};
use std::cmp::Reverse;
use std::io::{self, Write};
use vmm::host::sort_by_key;

/// The maximum number of sites that are drawn: those with most time.
const ROWS: usize = 16;
/// The size of a drawing in its own units. The page stretches it.
const WIDTH: f64 = 1000.0;
const HEIGHT: f64 = 60.0;
const MIDDLE: f64 = HEIGHT / 2.0;

/// A drawing with one histogram above the line and one below it.
struct Strip<'a> {
    name: &'static str,
    above: Option<(&'static str, &'a SavedTimes)>,
    below: Option<(&'static str, &'a SavedTimes)>,
    /// The CSS classes of both.
    classes: [&'static str; 2],
}

/// Writes the section.
pub(super) fn write(to: &mut impl Write, a: &Source, b: Option<&Source>) -> io::Result<()> {
    writeln!(to, "<section id=\"latencies\"><h2>Latencies</h2>")?;
    let labels = labels::of_both(a.summary.processor, b.unwrap_or(a).summary.processor);
    let rows: Vec<(&SavedSite, Vec<Strip<'_>>)> = match b {
        None => {
            let mut sites: Vec<_> = a.summary.machine.sites.iter().collect();
            sort_by_key(&mut sites, |site| (Reverse(total(&site.in_kvm, &site.in_vmm)), site.key()));
            sites.into_iter().map(|site| (site, vec![of_site(site, labels)])).collect()
        }
        Some(b) => {
            let pairs = compare::pairs(&a.summary, &b.summary);
            pairs.iter().filter_map(|pair| Some((pair.either()?, of_pair(pair, labels).into()))).collect()
        }
    };
    let drawn = |strip: &Strip<'_>| strip.times().any(|times| !times.bins.is_empty());
    let rows: Vec<_> = rows.into_iter().filter(|(_, strips)| strips.iter().any(drawn)).take(ROWS).collect();
    let Some(axis) = Axis::over(rows.iter().flat_map(|(_, strips)| strips).flat_map(Strip::times)) else {
        return writeln!(to, "<p>The file has no histograms.</p></section>");
    };
    writeln!(to, "{}", legend(labels))?;
    let how = match b {
        None => format!("Above the line: time {}. Below it: time in the VMM.", labels.time),
        Some(b) => {
            let [of_a, of_b] = [a, b].map(|source| escape(&source.name));
            format!("Above the line: A, {of_a}. Below it: B, {of_b}.")
        }
    };
    writeln!(
        to,
        "<p class=\"how\">{how} Each histogram is scaled to its fullest bin. The solid vertical line is the median, the dashed one \
         p99. The axis is logarithmic.</p>\n<svg class=\"defs\" aria-hidden=\"true\" width=\"0\" height=\"0\"><defs><pattern id=\"hatch\" \
         width=\"6\" height=\"6\" patternUnits=\"userSpaceOnUse\" patternTransform=\"rotate(45)\"><path d=\"M1 0V6\" \
         class=\"hatch\"/></pattern></defs></svg>\n<div class=\"plot\">"
    )?;
    write_axis(to, &axis)?;
    for (index, (site, strips)) in rows.iter().enumerate() {
        write_site(to, index, site, strips, &axis)?;
    }
    writeln!(to, "</div></section>")
}

fn write_site(
    to: &mut impl Write,
    index: usize,
    site: &SavedSite,
    strips: &[Strip<'_>],
    axis: &Axis,
) -> io::Result<()> {
    let name = escape(&Cell::text(&site.name()).shown());
    let device = match (&site.device, site.place) {
        // The name of the site tells it from others.
        (Some(device), _) if device == UNNAMED => String::new(),
        (Some(device), _) => escape(&Cell::text(device).shown()),
        (None, Some(_)) => UNCLAIMED.into(),
        (None, None) => String::new(),
    };
    let samples = samples(strips);
    match device.as_str() {
        "" => writeln!(to, "<div class=\"site\"><span class=\"name\">{name}<small>{samples}</small></span>")?,
        device => writeln!(
            to,
            "<div class=\"site\"><span class=\"name\">{device}<small>{name}</small> <small>{samples}</small></span>"
        )?,
    }
    writeln!(to, "<div class=\"strips\" tabindex=\"0\" role=\"group\" aria-labelledby=\"tip-{index}\">")?;
    strips.iter().try_for_each(|strip| write_strip(to, strip, axis))?;
    write_tip(to, index, &format!("{device} {name}"), strips)?;
    writeln!(to, "</div></div>")
}

/// The number of samples: of both histograms if they have as many, and otherwise of each.
fn samples(strips: &[Strip<'_>]) -> String {
    let count = |side: Option<(&str, &SavedTimes)>| side.map_or(0, |(_, times)| times.count);
    let first = strips.first().map_or((0, 0), |strip| (count(strip.above), count(strip.below)));
    match (first, strips.len()) {
        ((above, below), 1) if above == below => format!("n = {above}"),
        ((above, below), 1) => format!("n = {above}, VMM {below}"),
        ((above, below), _) => format!("n = {above} in A, {below} in B"),
    }
}

fn of_site<'a>(site: &'a SavedSite, labels: &Labels) -> Strip<'a> {
    let (above, below) = (Some((labels.time, &site.in_kvm)), Some(("in the VMM", &site.in_vmm)));
    Strip { name: "", above, below, classes: ["kvm", "vmm"] }
}

fn of_pair<'a>(pair: &compare::Pair<'a>, labels: &Labels) -> [Strip<'a>; 2] {
    let [of_a, of_b] = labels.of_each;
    let (kvm, vmm) = (|site: &'a SavedSite| &site.in_kvm, |site: &'a SavedSite| &site.in_vmm);
    [
        Strip {
            name: labels.name,
            above: pair.a.map(|site| (of_a, kvm(site))),
            below: pair.b.map(|site| (of_b, kvm(site))),
            classes: ["kvm", "kvm"],
        },
        Strip {
            name: "VMM",
            above: pair.a.map(|site| ("A in the VMM", vmm(site))),
            below: pair.b.map(|site| ("B in the VMM", vmm(site))),
            classes: ["vmm", "vmm"],
        },
    ]
}

impl Strip<'_> {
    fn times(&self) -> impl Iterator<Item = &SavedTimes> {
        [self.above, self.below].into_iter().flatten().map(|(_, times)| times)
    }
}

/// A logarithmic axis of nanoseconds.
struct Axis {
    from: f64,
    to: f64,
}

impl Axis {
    /// Returns an axis for all bins, or `None` if there are no bins.
    fn over<'a>(all: impl Iterator<Item = &'a SavedTimes>) -> Option<Self> {
        let bins = all.flat_map(|times| &times.bins).filter(|(_, count)| *count > 0);
        let (from, to) = bins.fold((f64::INFINITY, 0f64), |(from, to), (bound, _)| {
            (from.min(log(*bound)), to.max(log(upper(*bound))))
        });
        let room = ((to - from) * 0.03).max(0.1);
        from.is_finite().then_some(Self { from: from - room, to: to + room })
    }

    /// Returns the position of a time, from 0 to 1.
    fn at(&self, time: u64) -> f64 {
        ((log(time) - self.from) / (self.to - self.from)).clamp(0.0, 1.0)
    }

    /// Returns the times with a label: powers of ten, and on a short axis times in between.
    fn ticks(&self) -> Vec<u64> {
        let digits: &[u64] = match self.to - self.from {
            decades if decades > 3.2 => &[1],
            decades if decades > 1.6 => &[1, 3],
            _ => &[1, 2, 5],
        };
        let powers = (0..20u32).filter_map(|power| 10u64.checked_pow(power));
        let ticks = powers.flat_map(|power| digits.iter().filter_map(move |digit| power.checked_mul(*digit)));
        ticks.filter(|tick| log(*tick) >= self.from && log(*tick) <= self.to).collect()
    }
}

fn log(time: u64) -> f64 {
    libm::log10(time.max(1) as f64)
}

/// Returns the upper bound of a bin. Each power of two has 8 bins.
fn upper(bound: u64) -> u64 {
    let spare = bound.checked_ilog2().unwrap_or(0).saturating_sub(3);
    bound.saturating_add(1u64.checked_shl(spare).unwrap_or(1))
}

fn write_axis(to: &mut impl Write, axis: &Axis) -> io::Result<()> {
    write!(to, "<div class=\"axis\" aria-hidden=\"true\"><span></span><div>")?;
    for tick in axis.ticks() {
        let (at, shown) = (axis.at(tick) * 100.0, time(tick).replace(".00", "").replace(".0 ", " "));
        // A label at the right edge is placed left of its line: centred, it would widen the page.
        let class = match at > 94.0 {
            true => " class=\"last\"",
            // A narrow screen has room for powers of ten only.
            false if !tick.to_string().starts_with('1') => " class=\"between\"",
            false => "",
        };
        write!(to, "<span{class} style=\"left:{at:.2}%\">{shown}</span>")?;
    }
    writeln!(to, "</div></div>")
}

fn write_strip(to: &mut impl Write, strip: &Strip<'_>, axis: &Axis) -> io::Result<()> {
    write!(
        to,
        "<div class=\"strip\"><svg viewBox=\"0 0 {WIDTH} {HEIGHT}\" preserveAspectRatio=\"none\" aria-hidden=\"true\">"
    )?;
    let grid: String =
        axis.ticks().iter().map(|tick| format!("M{:.1} 0V{HEIGHT}", axis.at(*tick) * WIDTH)).collect();
    write!(to, "<path class=\"grid\" d=\"{grid}\"/>")?;
    let [above, below] = strip.classes;
    for (side, class, up) in [(strip.above, above, -1.0), (strip.below, below, 1.0)] {
        if let Some((_, times)) = side {
            write_histogram(to, times, class, up, axis)?;
        }
    }
    write!(to, "<path class=\"line\" d=\"M0 {MIDDLE}H{WIDTH}\"/></svg>")?;
    match strip.name {
        "" => writeln!(to, "</div>"),
        name => writeln!(to, "<span class=\"what\">{name}</span></div>"),
    }
}

/// Writes a path for the bars, and one each for the median and p99. `up` is -1 above the line and 1 below it.
fn write_histogram(
    to: &mut impl Write,
    times: &SavedTimes,
    class: &str,
    up: f64,
    axis: &Axis,
) -> io::Result<()> {
    let highest = times.bins.iter().map(|(_, count)| *count).max().unwrap_or(0).max(1) as f64;
    let mut bars = String::new();
    for (bound, count) in &times.bins {
        let (left, right) = (axis.at(*bound) * WIDTH, axis.at(upper(*bound)) * WIDTH);
        // A bin with few samples must stay visible.
        let height = (*count as f64 / highest).max(0.06) * (MIDDLE - 3.0);
        bars += &format!("M{left:.1} {MIDDLE}V{:.1}H{right:.1}V{MIDDLE}Z", MIDDLE + up * height);
    }
    write!(to, "<path class=\"{class}\" d=\"{bars}\"/>")?;
    let end = MIDDLE + up * (MIDDLE - 1.0);
    for (percentile, class) in [(times.p50, "p50"), (times.p99, "p99")] {
        if let Some(time) = percentile.filter(|_| !times.bins.is_empty()) {
            write!(to, "<path class=\"{class}\" d=\"M{:.1} {MIDDLE}V{end}\"/>", axis.at(time) * WIDTH)?;
        }
    }
    Ok(())
}

/// Writes the tooltip with the numbers of a drawing. It appears on hover and focus, and screen readers read it.
fn write_tip(to: &mut impl Write, index: usize, name: &str, strips: &[Strip<'_>]) -> io::Result<()> {
    write!(to, "<div class=\"tip\" role=\"tooltip\" id=\"tip-{index}\"><b>{}</b>", name.trim())?;
    for (side, times) in strips.iter().flat_map(|strip| [strip.above, strip.below]).flatten() {
        let known = |known: Option<u64>| known.map_or("unknown".into(), time);
        write!(
            to,
            "<span>{side}: {}, min {}, median {}, mean {}, p99 {}, max {}</span>",
            plural(times.count, "sample"),
            time(times.min),
            known(times.p50),
            time(times.mean()),
            known(times.p99),
            time(times.max)
        )?;
    }
    writeln!(to, "</div>")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_covers_all_bins() {
        let times = |bins: &[(u64, u64)]| SavedTimes { bins: bins.to_vec(), ..SavedTimes::default() };
        let all = [times(&[(0, 1), (96, 2)]), times(&[(4096, 1)])];
        let axis = Axis::over(all.iter()).unwrap();
        assert!(axis.at(0) > 0.0 && axis.at(upper(4096)) < 1.0);
        assert_eq!(axis.ticks(), [1, 10, 100, 1000]);
        assert!(Axis::over([times(&[]), times(&[(7, 0)])].iter()).is_none());
        let narrow = Axis::over([times(&[(4096, 1)])].iter()).unwrap();
        assert!(narrow.ticks().len() <= 2 && narrow.at(4096) > 0.0);
        let huge = Axis::over([times(&[(0, 1), (u64::MAX, u64::MAX)])].iter()).unwrap();
        assert!(huge.ticks().len() <= 20 && huge.at(u64::MAX) <= 1.0);
    }

    #[test]
    fn a_bin_ends_at_the_start_of_the_next() {
        for (bound, end) in [(0, 1), (7, 8), (8, 9), (15, 16), (16, 18), (4096, 4608), (u64::MAX, u64::MAX)] {
            assert_eq!(upper(bound), end);
        }
    }
}
