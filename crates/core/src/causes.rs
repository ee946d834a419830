//! An error with what caused it.

/// All causes in one line: many libraries' own text leaves out what happened ("client error (Connect)").
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Step {
        text: &'static str,
        source: Option<Box<Step>>,
    }

    #[test]
    fn every_cause_is_told_once() {
        let cause = |text, source| Some(Box::new(Step { text, source }));
        let error = Step { text: "connect", source: cause("tcp: refused", cause("refused", cause("errno 111", None))) };
        assert_eq!(chain(&error), "connect: tcp: refused: errno 111");
    }
}
