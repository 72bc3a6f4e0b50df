//! A request of `tiny_http` as it was on the wire: its first line, for the log, and its length.

/// Longest target, in bytes, that the log names.
const MAX_LOGGED_TARGET: usize = 200;

/// Longest method, in bytes, that the log names.
const MAX_LOGGED_METHOD: usize = 20;

/// Writes method and target of a request for the log.
pub(super) fn write_request_line(request: &tiny_http::Request, line: &mut String) {
    let (method, target) = (request.method().as_str(), request.url());
    line.clear();
    push_visible(line, &method[..method.len().min(MAX_LOGGED_METHOD)]);
    line.push(' ');
    push_visible(line, &target[..target.len().min(MAX_LOGGED_TARGET)]);
}

/// Appends ASCII text of a request, with everything invisible as `?`: it is logged before it is validated.
fn push_visible(line: &mut String, text: &str) {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        line.push_str(text);
    } else {
        line.extend(text.bytes().map(|byte| if byte.is_ascii_graphic() { char::from(byte) } else { '?' }));
    }
}

/// Bytes that a client sent for a request, estimated, without a long body.
pub(super) fn estimated_wire_len(request: &tiny_http::Request) -> u64 {
    let line = request.method().as_str().len() + request.url().len() + "  HTTP/1.1\r\n\r\n".len();
    let headers = request.headers().iter();
    let headers: usize = headers.map(|header| header.field.as_str().len() + header.value.len() + ": \r\n".len()).sum();
    let body = request.body_length().filter(|length| *length <= 1024).unwrap_or(0); // read with the head
    (line + headers + body) as u64
}
