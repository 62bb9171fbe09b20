//! Routes of envd that only the host may call; the ingress answers 404 for them before it looks for a sandbox.

/// Exact paths, after cleaning.
pub const HOST_ONLY_ROUTES: [&str; 8] = [
    "/init",
    "/logs",
    "/freeze",
    "/unfreeze",
    "/fsfreeze",
    "/fsthaw",
    "/collapse",
    "/upgrade",
];

/// Whether a request path names a host-only route, however it is spelled: percent-encoded, with empty, `.` or `..` segments.
pub fn is_host_only(path: &str) -> bool {
    let decoded = percent_decode(path);
    let mut segments: Vec<&[u8]> = Vec::new();
    for segment in decoded.split(|byte| *byte == b'/') {
        match segment {
            b"" | b"." => {}
            b".." => {
                segments.pop();
            }
            other => segments.push(other),
        }
    }
    let [only] = segments.as_slice() else {
        return false;
    };
    HOST_ONLY_ROUTES
        .iter()
        .any(|route| route.as_bytes()[1..] == **only)
}

fn percent_decode(path: &str) -> Vec<u8> {
    let bytes = path.as_bytes();
    let mut decoded = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let byte = bytes
            .get(at + 1..at + 3)
            .filter(|_| bytes[at] == b'%')
            .and_then(|digits| hex::decode(digits).ok());
        match byte {
            Some(byte) => {
                decoded.extend(byte);
                at += 3;
            }
            None => {
                decoded.push(bytes[at]);
                at += 1;
            }
        }
    }
    decoded
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_of_control_routes_are_seen() {
        for path in [
            "/init",
            "//init",
            "/files/../init",
            "/%69nit",
            "/init/",
            "/./freeze",
            "/upgrade",
            "/fsthaw",
        ] {
            assert!(is_host_only(path), "{path}");
        }
        for path in [
            "/",
            "/health",
            "/files",
            "/files/init",
            "/initx",
            "/process.Process/Start",
            "/%zzinit",
            "/INIT",
        ] {
            assert!(!is_host_only(path), "{path}");
        }
    }
}
