//! Stacks with common callers, as a tree: a node for each function that is called in one way.

use super::{Part, Samples};
use std::collections::HashMap;

/// A node of the tree.
pub(super) struct Node {
    /// The name of the function.
    pub(super) name: String,
    pub(super) part: Part,
    /// The node of the caller. `None` for the outermost functions.
    pub(super) parent: Option<usize>,
    /// The distance from the outermost function.
    pub(super) depth: usize,
    /// The number of samples of the function and those that it calls.
    pub(super) total: u64,
    /// The number of samples of the function itself.
    pub(super) own: u64,
}

/// The nodes: a caller is before those that it calls, and the functions that one calls are in the order of their names.
pub(super) fn nodes(samples: &Samples) -> Vec<Node> {
    let mut nodes: Vec<Node> = Vec::new();
    let mut known: HashMap<(Option<usize>, &str), usize> = HashMap::new();
    for (stack, count) in samples.sorted() {
        let mut parent = None;
        for (depth, frame) in samples.resolve(stack).enumerate() {
            let place = *known.entry((parent, frame.name())).or_insert_with(|| {
                let name = frame.name().to_string();
                nodes.push(Node { name, part: frame.part, parent, depth, total: 0, own: 0 });
                nodes.len().saturating_sub(1)
            });
            if let Some(node) = nodes.get_mut(place) {
                node.total = node.total.saturating_add(count);
            }
            parent = Some(place);
        }
        if let Some(node) = parent.and_then(|place| nodes.get_mut(place)) {
            node.own = node.own.saturating_add(count);
        }
    }
    nodes
}
