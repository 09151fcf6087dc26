//! A flame graph: a picture in one SVG file without external parts, for light and dark displays. The outermost functions are
//! at the bottom. The width of a function is its share of the samples.

use super::tree::{Node, nodes};
use super::{Part, Samples};
use crate::view::escape;
use std::fmt::Write as _;
use std::io::{self, Write};
use vmm::host::sort_by;

/// The width of the picture.
const WIDTH: f64 = 1200.0;
/// The distance of the frames from the borders.
const MARGIN: f64 = 10.0;
/// The height of a frame with its gap.
const LINE: f64 = 18.0;
/// The height of the title and the legend.
const TOP: f64 = 62.0;
/// The narrowest frame that is drawn.
const NARROWEST: f64 = 0.3;
/// The narrowest frame with a text, and the width of a character.
const WITH_TEXT: f64 = 24.0;
const CHARACTER: f64 = 7.0;
/// The most frames that are drawn, the widest ones.
const MOST_DRAWN: usize = 8000;

/// The colours of the frames are those of light and of dark displays.
const STYLE: &str = "
  .flame { font: 12px ui-monospace, monospace; min-width: 40rem; }
  .flame text { fill: var(--ink); }
  .flame .title { font-size: 15px; font-weight: 600; }
  .flame .faint { fill: var(--muted); }
  .flame g text { fill: #1c1c1e; pointer-events: none; }
  .flame g rect { stroke: var(--ground); stroke-width: 0.5; }
  .flame g:hover rect { stroke: var(--ink); stroke-width: 1.5; }
  .flame .guest { fill: #f2a65a; } .flame .KVM { fill: #c59bdc; } .flame .VMM { fill: #8fb8f0; }
  .flame .halted { fill: #b9b9be; } .flame .exit { fill: #8ecf9d; }
";

/// The other colours of a file. A page has them already.
const COLORS: &str = "
  .flame { --ground: #ffffff; --ink: #1c1c1e; --muted: #6b6b70; background: var(--ground); }
  @media (prefers-color-scheme: dark) { .flame { --ground: #17181a; --ink: #ececf0; --muted: #a0a0a8; } }
";

/// A frame of the picture.
struct Drawn<'a> {
    node: &'a Node,
    left: f64,
    width: f64,
}

/// Writes the file.
pub(super) fn write(to: &mut dyn Write, samples: &Samples, title: &str) -> io::Result<()> {
    writeln!(to, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    draw(to, samples, title, COLORS)
}

/// Writes the picture as an element of a page, which has a title of its own.
pub(super) fn write_element(to: &mut dyn Write, samples: &Samples) -> io::Result<()> {
    draw(to, samples, "", "")
}

fn draw(to: &mut dyn Write, samples: &Samples, title: &str, colors: &str) -> io::Result<()> {
    let (nodes, total) = (nodes(samples), samples.total());
    let drawn = layout(&nodes, total);
    let deepest = drawn.iter().map(|drawn| drawn.node.depth).max().unwrap_or(0);
    let height = (deepest.saturating_add(1) as f64).mul_add(LINE, TOP + MARGIN);
    writeln!(
        to,
        "<svg class=\"flame\" xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"100%\" role=\"img\">\n\
         <title>{}: flame graph</title>\n<style>{STYLE}{colors}</style>",
        escape(&super::clean(if title.is_empty() { "samples" } else { title }))
    )?;
    let rate = samples.rate.map_or_else(String::new, |rate| format!(", {rate} a second"));
    let heading =
        if title.is_empty() { String::new() } else { format!("{}: ", escape(&super::clean(title))) };
    writeln!(
        to,
        "<text class=\"title\" x=\"{MARGIN}\" y=\"24\">{heading}{total} {}{rate}</text>",
        samples.unit()
    )?;
    write_legend(to, samples, total)?;
    if drawn.is_empty() {
        writeln!(to, "<text class=\"faint\" x=\"{MARGIN}\" y=\"{}\">no samples</text>", TOP + LINE)?;
    }
    drawn.iter().try_for_each(|drawn| write_frame(to, drawn, total, height))?;
    writeln!(to, "</svg>")
}

/// The frames with their places, as far as they are wide enough.
fn layout(nodes: &[Node], total: u64) -> Vec<Drawn<'_>> {
    let unit = (WIDTH - 2.0 * MARGIN) / total.max(1) as f64;
    // The left end of the part of each node that is still free, for the functions that it calls.
    let mut free: Vec<f64> = Vec::with_capacity(nodes.len());
    let mut outermost = MARGIN;
    let mut drawn = Vec::new();
    for node in nodes {
        let width = node.total as f64 * unit;
        let place = node.parent.and_then(|parent| free.get_mut(parent)).unwrap_or(&mut outermost);
        let left = *place;
        *place += width;
        free.push(left);
        if width >= NARROWEST {
            drawn.push(Drawn { node, left, width });
        }
    }
    sort_by(&mut drawn, |one, other| other.width.total_cmp(&one.width));
    drawn.truncate(MOST_DRAWN);
    drawn
}

fn write_legend(to: &mut dyn Write, samples: &Samples, total: u64) -> io::Result<()> {
    let mut left = MARGIN;
    for (part, count) in Part::ALL.into_iter().zip(samples.parts()).filter(|(_, count)| *count > 0) {
        let name = match part {
            Part::Guest if samples.may_be_kvm => "guest or KVM",
            part => part.name(),
        };
        let text = format!("{:.1} % {name}", percent(count, total));
        writeln!(
            to,
            "<rect class=\"{}\" x=\"{left}\" y=\"36\" width=\"12\" height=\"12\"/><text class=\"faint\" x=\"{}\" y=\"46\">{text}</text>",
            part.name(),
            left + 18.0
        )?;
        left += (text.len() as f64).mul_add(CHARACTER, 40.0);
    }
    Ok(())
}

fn write_frame(to: &mut dyn Write, drawn: &Drawn<'_>, total: u64, height: f64) -> io::Result<()> {
    let Drawn { node, left, width } = drawn;
    let top = (node.depth.saturating_add(1) as f64).mul_add(-LINE, height - MARGIN);
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write!(
        text,
        "<g><title>{}\n{:.2} %, {} of {total}; itself {:.2} %</title><rect class=\"{}\" x=\"{left:.1}\" y=\"{top:.1}\" \
         width=\"{width:.1}\" height=\"{}\" rx=\"2\"/>",
        escape(&node.name),
        percent(node.total, total),
        node.total,
        percent(node.own, total),
        node.part.name(),
        LINE - 1.0
    );
    if *width >= WITH_TEXT {
        let room = ((width - 6.0) / CHARACTER) as usize;
        let _ = write!(
            text,
            "<text x=\"{:.1}\" y=\"{:.1}\">{}</text>",
            left + 3.0,
            top + 12.5,
            escape(&shortened(&node.name, room))
        );
    }
    writeln!(to, "{text}</g>")
}

/// The beginning of a name that fits.
fn shortened(name: &str, room: usize) -> String {
    match name.chars().count() <= room {
        true => name.into(),
        false => name.chars().take(room.saturating_sub(2)).chain("..".chars()).collect(),
    }
}

fn percent(count: u64, total: u64) -> f64 {
    100.0 * count as f64 / total.max(1) as f64
}
