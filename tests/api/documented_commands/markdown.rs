//! Reads the parts of a document that a test runs: its fenced code blocks and the commands in
//! comments, `<!-- test: … -->`, which readers do not see.

/// The language of the commands in a comment.
pub const HIDDEN: &str = "test";

/// A code block, or the commands in a comment.
#[derive(Clone, Debug, PartialEq)]
pub struct Block {
    /// The line of its beginning, from 1.
    pub line: usize,
    /// The language after the opening fence, or [`HIDDEN`].
    pub language: String,
    /// The content, without the indentation of the fence. Each line ends with a line feed.
    pub text: String,
    /// True if only blank lines are between the previous block and this one.
    pub is_adjacent: bool,
}

/// Returns the blocks of a document in their order.
pub fn blocks(document: &str) -> Vec<Block> {
    let mut blocks = Vec::new();
    let mut is_adjacent = false;
    let mut lines = document.lines().zip(1..);
    while let Some((text, line)) = lines.next() {
        let content = text.trim_start();
        let indentation = text.len() - content.len();
        let block = if let Some(language) = content.strip_prefix("```") {
            let language = language.trim().to_owned();
            let body = lines.by_ref().map(|(text, _)| text);
            let body = body.take_while(|text| !text.trim_start().starts_with("```"));
            let text = body.map(|text| without_indentation(text, indentation) + "\n").collect();
            Block { line, language, text, is_adjacent }
        } else if let Some(first) = content.strip_prefix("<!-- test:") {
            Block {
                line,
                language: HIDDEN.to_owned(),
                text: comment(first, &mut lines),
                is_adjacent,
            }
        } else {
            is_adjacent &= content.is_empty();
            continue;
        };
        blocks.push(block);
        is_adjacent = true;
    }
    blocks
}

/// Returns the commands of a comment whose first line is `first`.
fn comment<'a>(first: &'a str, lines: &mut impl Iterator<Item = (&'a str, usize)>) -> String {
    let mut commands = String::new();
    let mut line = Some(first);
    while let Some(text) = line {
        let (text, is_end) = text.split_once("-->").map_or((text, false), |(text, _)| (text, true));
        commands.push_str(text.trim());
        commands.push('\n');
        line = if is_end { None } else { lines.next().map(|(text, _)| text) };
    }
    commands
}

/// Removes up to `indentation` spaces from the beginning of a line.
fn without_indentation(line: &str, indentation: usize) -> String {
    let spaces = line.len() - line.trim_start_matches(' ').len();
    line[spaces.min(indentation)..].to_owned()
}

#[test]
fn blocks_and_hidden_commands_are_read_in_order() {
    let document = "text\n\n1. step\n\n   ```sh\n   one\n     two\n   ```\n\n   ```text\n   out\n   \
                    ```\nprose\n<!-- test: three -->\n<!-- test:\nfour\nfive -->\n```sql\n```\n";
    let block = |line, language: &str, text: &str, is_adjacent| Block {
        line,
        language: language.to_owned(),
        text: text.to_owned(),
        is_adjacent,
    };
    assert_eq!(
        blocks(document),
        [
            block(5, "sh", "one\n  two\n", false),
            block(10, "text", "out\n", true),
            block(14, HIDDEN, "three\n", false),
            block(15, HIDDEN, "\nfour\nfive\n", true),
            block(18, "sql", "", true),
        ]
    );
}
