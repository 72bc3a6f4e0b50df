//! The decoder of chunked bodies, by the grammar of RFC 9112, section 7.1, to the letter.
//!
//! It keeps no byte: framing is checked and skipped, extensions and trailers are ignored as section 7.1.1 and 7.1.2 allow.
//! All that is not data is bounded, so that a body cannot be all framing.

use crate::http::validate::is_token;

/// Most hexadecimal digits of a chunk's size, leading zeros included.
const MAX_DIGITS: u8 = 16;
/// Largest size of a chunk in bytes: no file is longer (`off_t`), so a larger size is an overflow at the sender.
const MAX_SIZE: u64 = i64::MAX as u64;
/// Most bytes of all chunk extensions of a body, as much as Go's `net/http` takes beyond the data.
const MAX_EXTENSIONS: usize = 16 * 1024;
/// Most bytes of the trailer section.
const MAX_TRAILERS: usize = 16 * 1024;

/// The kind of bytes that follow the framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    /// Unknown: more bytes are needed.
    More,
    /// This many bytes of data, at least one.
    Data(u64),
    /// The body is complete.
    End,
}

/// The body breaks the grammar.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Malformed;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// `chunk-size`: at least one digit.
    Size,
    /// White space after the size, or after an extension; a semicolon must follow.
    BeforeExtension,
    /// After a semicolon.
    ExtensionName {
        started: bool,
    },
    /// White space after an extension's name.
    AfterName,
    /// After the equals sign.
    ExtensionValue {
        started: bool,
    },
    Quoted {
        escaped: bool,
    },
    AfterQuoted,
    /// The CR at the end of the size's line has come.
    SizeLf,
    Data,
    DataCr,
    DataLf,
    /// At the beginning of a line of the trailer section, or of the empty line that ends it.
    Trailer,
    TrailerName,
    TrailerValue,
    TrailerLf,
    LastLf,
    End,
}

/// The state of one body.
#[derive(Clone, Debug)]
pub(super) struct ChunkDecoder {
    state: State,
    digits: u8,
    /// Bytes that are left of the chunk.
    left: u64,
    extensions: usize,
    trailers: usize,
}

impl ChunkDecoder {
    pub(super) fn new() -> ChunkDecoder {
        ChunkDecoder { state: State::Size, digits: 0, left: 0, extensions: 0, trailers: 0 }
    }

    /// Skips framing at the beginning of `bytes`. Gives its length and what follows it; data must be [taken](Self::take)
    /// before the next call.
    ///
    /// # Errors
    ///
    /// [`Malformed`]: the end of the body is unknown.
    pub(super) fn skip_framing(&mut self, bytes: &[u8]) -> Result<(usize, Next), Malformed> {
        for (at, byte) in bytes.iter().enumerate() {
            match self.state {
                State::Data => return Ok((at, Next::Data(self.left))),
                State::End => return Ok((at, Next::End)),
                _ => self.step(*byte)?,
            }
        }
        let next = match self.state {
            State::Data => Next::Data(self.left),
            State::End => Next::End,
            _ => Next::More,
        };
        Ok((bytes.len(), next))
    }

    /// `count` bytes of data were taken; at most as many as were announced.
    pub(super) fn take(&mut self, count: u64) {
        self.left = self.left.saturating_sub(count);
        if self.left == 0 && self.state == State::Data {
            self.state = State::DataCr;
        }
    }

    fn step(&mut self, byte: u8) -> Result<(), Malformed> {
        self.state = match self.state {
            State::Size => return self.step_size(byte),
            State::BeforeExtension
            | State::ExtensionName { .. }
            | State::AfterName
            | State::ExtensionValue { .. }
            | State::Quoted { .. }
            | State::AfterQuoted => {
                self.extensions += 1;
                if self.extensions > MAX_EXTENSIONS {
                    return Err(Malformed);
                }
                after_extension_byte(self.state, byte)?
            }
            State::SizeLf if byte == b'\n' => {
                self.digits = 0;
                if self.left == 0 { State::Trailer } else { State::Data }
            }
            State::DataCr if byte == b'\r' => State::DataLf,
            State::DataLf if byte == b'\n' => State::Size,
            State::Trailer | State::TrailerName | State::TrailerValue | State::TrailerLf => {
                self.trailers += 1;
                if self.trailers > MAX_TRAILERS {
                    return Err(Malformed);
                }
                after_trailer_byte(self.state, byte)?
            }
            State::LastLf if byte == b'\n' => State::End,
            _ => return Err(Malformed),
        };
        Ok(())
    }

    fn step_size(&mut self, byte: u8) -> Result<(), Malformed> {
        if let Some(digit) = char::from(byte).to_digit(16) {
            if self.digits == MAX_DIGITS {
                return Err(Malformed);
            }
            self.digits += 1;
            self.left = (self.left << 4) | u64::from(digit);
            return if self.left > MAX_SIZE { Err(Malformed) } else { Ok(()) };
        }
        if self.digits == 0 {
            return Err(Malformed);
        }
        self.state = match byte {
            b'\r' => State::SizeLf,
            b';' => State::ExtensionName { started: false },
            b' ' | b'\t' => State::BeforeExtension,
            _ => return Err(Malformed),
        };
        Ok(())
    }
}

fn is_blank(byte: u8) -> bool {
    byte == b' ' || byte == b'\t'
}

/// Horizontal tab, space, visible ASCII and obs-text: what values and quoted strings may hold.
fn is_text(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7F)
}

/// `chunk-ext = *( BWS ";" BWS chunk-ext-name [ BWS "=" BWS chunk-ext-val ] )`
fn after_extension_byte(state: State, byte: u8) -> Result<State, Malformed> {
    let is_token = is_token(&[byte]);
    Ok(match (state, byte) {
        (State::ExtensionName { started: true } | State::AfterName, b'=') => State::ExtensionValue { started: false },
        (
            State::BeforeExtension
            | State::ExtensionName { started: true }
            | State::AfterName
            | State::ExtensionValue { started: true }
            | State::AfterQuoted,
            b';',
        ) => State::ExtensionName { started: false },
        (
            State::ExtensionName { started: true } | State::ExtensionValue { started: true } | State::AfterQuoted,
            b'\r',
        ) => State::SizeLf,
        (State::ExtensionName { .. }, _) if is_token => State::ExtensionName { started: true },
        (State::ExtensionName { started: true }, _) if is_blank(byte) => State::AfterName,
        (State::ExtensionValue { started: false }, b'"') => State::Quoted { escaped: false },
        (State::ExtensionValue { .. }, _) if is_token => State::ExtensionValue { started: true },
        (State::ExtensionValue { started: true } | State::AfterQuoted, _) if is_blank(byte) => State::BeforeExtension,
        (
            State::BeforeExtension
            | State::AfterName
            | State::ExtensionName { started: false }
            | State::ExtensionValue { started: false },
            _,
        ) if is_blank(byte) => state,
        (State::Quoted { escaped: false }, b'"') => State::AfterQuoted,
        (State::Quoted { escaped: false }, b'\\') => State::Quoted { escaped: true },
        (State::Quoted { .. }, _) if is_text(byte) => State::Quoted { escaped: false },
        _ => return Err(Malformed),
    })
}

/// `trailer-section = *( field-line CRLF )`, and the CRLF that ends the body.
fn after_trailer_byte(state: State, byte: u8) -> Result<State, Malformed> {
    let is_token = is_token(&[byte]);
    Ok(match (state, byte) {
        (State::Trailer, b'\r') => State::LastLf,
        (State::Trailer | State::TrailerName, _) if is_token => State::TrailerName,
        (State::TrailerName, b':') => State::TrailerValue,
        (State::TrailerValue, b'\r') => State::TrailerLf,
        (State::TrailerValue, _) if is_text(byte) => State::TrailerValue,
        (State::TrailerLf, b'\n') => State::Trailer,
        _ => return Err(Malformed),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Decodes a body that arrives in pieces of `size` bytes: its data, and how many bytes of `wire` follow it.
    fn decode(wire: &[u8], size: usize) -> Result<Option<(Vec<u8>, usize)>, Malformed> {
        let (mut decoder, mut data, mut taken) = (ChunkDecoder::new(), Vec::new(), 0);
        for piece in wire.chunks(size) {
            let mut rest = piece;
            loop {
                let (skipped, next) = decoder.skip_framing(rest)?;
                rest = &rest[skipped..];
                taken += skipped;
                match next {
                    Next::More => break,
                    Next::End => return Ok(Some((data, wire.len() - taken))),
                    Next::Data(announced) => {
                        let count = usize::try_from(announced).unwrap_or(usize::MAX).min(rest.len());
                        if count == 0 {
                            break;
                        }
                        data.extend_from_slice(&rest[..count]);
                        decoder.take(count as u64);
                        rest = &rest[count..];
                        taken += count;
                    }
                }
            }
        }
        Ok((decoder.state == State::End).then(|| (data, wire.len() - taken)))
    }

    #[test]
    fn data_is_what_is_between_the_framing_however_it_arrives() {
        let wire = b"5\r\nhello\r\n9;a;b=c ; d = \"e\\\"\xFF;\t\" \t;f\r\n, world!!\r\n000;x=y\r\n\
            X-Check: \xC3\xA9 1\r\nEmpty:\r\n\r\nGET ";
        for size in 1..wire.len() {
            assert_eq!(decode(wire, size), Ok(Some((b"hello, world!!".to_vec(), 4))), "in pieces of {size}");
        }
    }

    #[test]
    fn sizes_are_hexadecimal_digits_below_2_to_the_63_and_nothing_else() {
        for bad in [
            "\r\n",
            "+5\r\nhello",
            "-5\r\n",
            "0x5\r\nhello",
            "5 \r\nhello",
            " 5\r\nhello",
            "5\nhello",
            "5\r\r\n",
            "g\r\n",
            "5,\r\n",
            "00000000000000005\r\nhello",
            "5\r\nhello5\r\n",
            "5\r\nhello\n0\r\n\r\n",
            "5\r\nhello\r\r\n",
            "0\r\n\n",
            "0\n\r\n",
            "5_0\r\n",
            "8000000000000000\r\n",
            "ffffffffffffffff\r\n",
        ] {
            assert_eq!(decode(bad.as_bytes(), 1), Err(Malformed), "{bad:?}");
        }
        let mut decoder = ChunkDecoder::new();
        assert_eq!(decoder.skip_framing(b"7fffFFFFffffffff\r\nx"), Ok((18, Next::Data(MAX_SIZE))));
        assert_eq!(decode(b"5\r\nhel", 2), Ok(None), "not complete");
        assert_eq!(decode(b"0\r\n\r", 2), Ok(None), "not complete");
    }

    #[test]
    fn extensions_follow_their_grammar_and_are_bounded() {
        for bad in [
            "0;\r\n\r\n",
            "0;=\r\n\r\n",
            "0;a=\r\n\r\n",
            "0;a b\r\n\r\n",
            "0;a=\"\r\n\r\n",
            "0;a=\"b\"c\r\n\r\n",
            "0;a\n\r\n",
            "0;a \r\n\r\n",
            "0; a=b \r\n\r\n",
            "0;a=\"\\\x01\"\r\n\r\n",
            "0;a\x00\r\n\r\n",
            "0;(\r\n\r\n",
            "0 a\r\n\r\n",
            "0;a=b=c\r\n\r\n",
        ] {
            assert_eq!(decode(bad.as_bytes(), 3), Err(Malformed), "{bad:?}");
        }
        let long = format!("0;{}\r\n\r\n", "a".repeat(MAX_EXTENSIONS + 1));
        assert_eq!(decode(long.as_bytes(), 1000), Err(Malformed));
        let many = format!("{}0\r\n\r\n", "1;a=b\r\nx\r\n".repeat(MAX_EXTENSIONS));
        assert_eq!(decode(many.as_bytes(), 1000), Err(Malformed), "in small pieces as well");
    }

    #[test]
    fn trailers_are_header_lines_and_are_bounded() {
        for bad in [
            "a\r\n\r\n",
            " a: b\r\n\r\n",
            "a : b\r\n\r\n",
            ": b\r\n\r\n",
            "a: b\n\r\n",
            "a: \x01\r\n\r\n",
            "a: b\r\n c\r\n\r\n",
        ] {
            assert_eq!(decode(format!("0\r\n{bad}").as_bytes(), 2), Err(Malformed), "{bad:?}");
        }
        let endless = format!("0\r\n{}", "a: b\r\n".repeat(MAX_TRAILERS));
        assert_eq!(decode(endless.as_bytes(), 1000), Err(Malformed));
    }
}
