//! Prompts that change while a picture is painted: `[from:to:when]` and `[a|b]` of A1111's syntax.
//!
//! - `[from:to:when]` reads `from` up to and including step `when`, then `to`; `[to:when]` and `[from::when]` have one
//!   side empty. A `when` with a point in it is a fraction of the steps, else a number of steps.
//! - `[a|b|c]` takes turns, one a step.
//!
//! Both nest. Other brackets stay as they are, for [`super::prompt`] to read as weights.

/// A prompt as it reads from one step on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// First step with this text, from 0.
    pub from_step: u32,
    /// The prompt without scheduling syntax.
    pub text: String,
}

/// Brackets nested deeper than this are text.
const MAX_DEPTH: usize = 32;

/// Splits a prompt into its stages over `steps` steps. The first one starts at step 0; neighbours differ.
pub fn stages(prompt: &str, steps: u32) -> Vec<Stage> {
    let nodes = parse(prompt, &matching(prompt), 0, prompt.len(), 0);
    let changes = nodes.iter().any(Node::changes);
    let last = if changes { steps.max(1) } else { 1 };
    let mut stages: Vec<Stage> = Vec::new();
    for step in 0..last {
        let mut text = String::with_capacity(prompt.len());
        render(&nodes, step + 1, steps, &mut text);
        if stages.last().is_none_or(|stage| stage.text != text) {
            stages.push(Stage { from_step: step, text });
        }
    }
    stages
}

enum Node<'a> {
    Text(&'a str),
    /// A bracket of another kind: the nodes include its own signs.
    Group(Vec<Node<'a>>),
    Switch {
        before: Vec<Node<'a>>,
        after: Vec<Node<'a>>,
        when: When,
    },
    Turns(Vec<Vec<Node<'a>>>),
}

#[derive(Clone, Copy)]
enum When {
    Step(f32),
    Fraction(f32),
}

impl Node<'_> {
    fn changes(&self) -> bool {
        match self {
            Self::Text(_) => false,
            Self::Group(nodes) => nodes.iter().any(Self::changes),
            Self::Switch { .. } | Self::Turns(_) => true,
        }
    }
}

/// For each opening bracket the place of its closing one, by byte; escaped brackets are text.
fn matching(text: &str) -> Vec<usize> {
    let mut close = vec![usize::MAX; text.len()];
    let mut open: Vec<(usize, u8)> = Vec::new();
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b'(' | b'[' => open.push((at, byte)),
            b')' | b']' => {
                let wanted = if byte == b')' { b'(' } else { b'[' };
                if let Some(depth) = open
                    .iter()
                    .rposition(|(_, sign)| *sign == wanted)
                    .filter(|d| *d + 1 == open.len())
                {
                    close[open[depth].0] = at;
                    open.truncate(depth);
                }
            }
            _ => {}
        }
    }
    close
}

fn parse<'a>(text: &'a str, close: &[usize], from: usize, to: usize, depth: usize) -> Vec<Node<'a>> {
    let bytes = text.as_bytes();
    let mut nodes = Vec::new();
    let (mut plain, mut at) = (from, from);
    while at < to {
        match bytes[at] {
            b'\\' => at += 2,
            b'(' | b'[' if close[at] < to && depth < MAX_DEPTH => {
                nodes.push(Node::Text(&text[plain..at]));
                nodes.push(bracket(text, close, at, depth + 1));
                at = close[at] + 1;
                plain = at;
            }
            _ => at += 1,
        }
    }
    nodes.push(Node::Text(&text[plain..to]));
    nodes
}

/// The node of the bracket that opens at `open`.
fn bracket<'a>(text: &'a str, close: &[usize], open: usize, depth: usize) -> Node<'a> {
    let end = close[open];
    let inside = |from, to| parse(text, close, from, to, depth);
    if text.as_bytes()[open] == b'[' {
        let bars = signs(text, close, open + 1, end, b'|');
        if !bars.is_empty() {
            return Node::Turns(spans(&bars, open + 1, end).map(|(from, to)| inside(from, to)).collect());
        }
        let colons = signs(text, close, open + 1, end, b':');
        let number = colons.last().and_then(|colon| read_when(&text[colon + 1..end]));
        match (colons.as_slice(), number) {
            ([last], Some(when)) => {
                return Node::Switch {
                    before: Vec::new(),
                    after: inside(open + 1, *last),
                    when,
                };
            }
            ([first, last], Some(when)) => {
                return Node::Switch {
                    before: inside(open + 1, *first),
                    after: inside(first + 1, *last),
                    when,
                };
            }
            _ => {}
        }
    }
    let mut nodes = vec![Node::Text(&text[open..=open])];
    nodes.extend(inside(open + 1, end));
    nodes.push(Node::Text(&text[end..=end]));
    Node::Group(nodes)
}

/// Places of `sign` between `from` and `to` that are neither escaped nor inside a bracket of their own.
fn signs(text: &str, close: &[usize], from: usize, to: usize, sign: u8) -> Vec<usize> {
    let bytes = text.as_bytes();
    let mut found = Vec::new();
    let mut at = from;
    while at < to {
        match bytes[at] {
            b'\\' => at += 1,
            b'(' | b'[' if close[at] < to => at = close[at],
            byte if byte == sign => found.push(at),
            _ => {}
        }
        at += 1;
    }
    found
}

/// The stretches between signs.
fn spans(signs: &[usize], from: usize, to: usize) -> impl Iterator<Item = (usize, usize)> {
    let starts = std::iter::once(from).chain(signs.iter().map(|at| at + 1));
    let ends = signs.iter().copied().chain(std::iter::once(to));
    starts.zip(ends).collect::<Vec<_>>().into_iter()
}

fn read_when(text: &str) -> Option<When> {
    let text = text.trim();
    let plain_number = text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'.' | b'+' | b'-'));
    let number: f32 = text.parse().ok().filter(|_| plain_number)?;
    Some(if text.contains('.') {
        When::Fraction(number)
    } else {
        When::Step(number)
    })
}

/// `step` counts from 1.
fn render(nodes: &[Node<'_>], step: u32, steps: u32, out: &mut String) {
    for node in nodes {
        match node {
            Node::Text(text) => out.push_str(text),
            Node::Group(nodes) => render(nodes, step, steps, out),
            Node::Switch { before, after, when } => {
                let when = match when {
                    When::Step(step) => *step,
                    When::Fraction(fraction) => fraction * steps as f32,
                };
                let chosen = if step as f32 <= when.floor() { before } else { after };
                render(chosen, step, steps, out);
            }
            Node::Turns(choices) => render(&choices[(step as usize - 1) % choices.len()], step, steps, out),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(prompt: &str, steps: u32, expected: &[(u32, &str)]) {
        let found: Vec<_> = stages(prompt, steps)
            .into_iter()
            .map(|s| (s.from_step, s.text))
            .collect();
        let expected: Vec<_> = expected
            .iter()
            .map(|(step, text)| (*step, (*text).to_owned()))
            .collect();
        assert_eq!(found, expected, "{prompt}");
    }

    /// The examples in the documentation of A1111's parser (which counts the steps from 1 and names each stage's end).
    #[test]
    fn reads_the_examples_of_a1111() {
        check("test", 10, &[(0, "test")]);
        check("a [b:3]", 10, &[(0, "a "), (3, "a b")]);
        check("a [b: 3]", 10, &[(0, "a "), (3, "a b")]);
        check("a [[[b]]:2]", 10, &[(0, "a "), (2, "a [[b]]")]);
        check("[(a:2):3]", 10, &[(0, ""), (3, "(a:2)")]);
        check("a [b : c : 1] d", 10, &[(0, "a b  d"), (1, "a  c  d")]);
        check("a[b:[c:d:2]:1]e", 10, &[(0, "abe"), (1, "ace"), (2, "ade")]);
        check("a [unbalanced", 10, &[(0, "a [unbalanced")]);
        check("a [b:.5] c", 10, &[(0, "a  c"), (5, "a b c")]);
        check("((a][:b:c [d:3]", 10, &[(0, "((a][:b:c "), (3, "((a][:b:c d")]);
        check("[a|b]", 3, &[(0, "a"), (1, "b"), (2, "a")]);
        check("[a|(b:1.1)]", 2, &[(0, "a"), (1, "(b:1.1)")]);
        check("[fe|||]male", 4, &[(0, "female"), (1, "male")]);
    }

    #[test]
    fn one_side_may_be_empty_and_fractions_count() {
        check("a [b::5] c", 10, &[(0, "a b c"), (5, "a  c")]);
        check("a [b:c:1.0]", 4, &[(0, "a b")]);
        check("a [b:c:0]", 4, &[(0, "a c")]);
        check("a [b:c:99]", 4, &[(0, "a b")]);
    }

    #[test]
    fn what_is_no_schedule_is_left_for_the_weights() {
        check(r"[a] (b:1.2) \[c:3\] [d:e]", 10, &[(0, r"[a] (b:1.2) \[c:3\] [d:e]")]);
        check("", 10, &[(0, "")]);
        check(r"ends in \", 10, &[(0, r"ends in \")]);
    }

    #[test]
    fn hostile_nesting_ends_quickly() {
        let deep = "[".repeat(5000) + "a" + &":1]".repeat(5000);
        assert!(!stages(&deep, 150).is_empty());
        assert_eq!(stages(&"[".repeat(10_000), 150).len(), 1);
        assert_eq!(stages(&"\\".repeat(9_999), 150).len(), 1);
    }
}
