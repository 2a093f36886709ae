//! The position of a part in a body.

/// The position of a part in the body.
#[derive(Clone, Debug)]
pub struct Place {
    /// What people call it: `part 2.1`; empty for the whole body.
    pub name: String,
    /// What stands around it can carry 8-bit bytes.
    pub eight_bit: bool,
    /// It is a mail inside of a mail (message/rfc822), with headers of its own.
    pub mail: bool,
    pub depth: usize,
}

impl Place {
    pub fn child(&self, number: usize) -> Self {
        let name = match self.name.as_str() {
            "" => format!("part {number}"),
            name => format!("{name}.{number}"),
        };
        Self { name, mail: false, depth: self.depth + 1, ..*self }
    }

    pub fn name(&self) -> &str {
        if self.name.is_empty() { "the body" } else { &self.name }
    }
}
