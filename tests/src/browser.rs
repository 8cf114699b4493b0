//! Drives Debian's Chromium through its debugging pipe, as a person would: opens a page, looks, types, takes a picture.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use serde_json::{Value, json};

/// A browser with one page; it ends with the value.
#[derive(Debug)]
pub struct Browser {
    child: Child,
    to: ChildStdin,
    from: BufReader<ChildStdout>,
    last: u64,
    session: Option<String>,
    complaints: Vec<String>,
    _home: tempfile::TempDir,
}

impl Browser {
    /// Starts it with an empty page.
    ///
    /// # Errors
    /// It is not installed or does not answer.
    pub fn start() -> Result<Self> {
        let home = crate::node::scratch()?;
        // The pipe is descriptors 3 and 4; a shell makes them of standard input and output.
        let mut command = Command::new("sh");
        command.args(["-c", "exec \"$@\" 3<&0 4>&1 </dev/null >/dev/null 2>&1", "sh"]);
        command.arg(crate::node::tool("chromium", "chromium")?);
        command.args(["--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe"]);
        command.args(["--hide-scrollbars", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"]);
        let mut child = command
            .env("HOME", home.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the browser")?;
        let (to, from) = (child.stdin.take().context("no pipe")?, child.stdout.take().context("no pipe")?);
        let from = BufReader::new(from);
        let mut browser =
            Self { child, to, from, last: 0, session: None, complaints: Vec::new(), _home: home };
        let target = browser.call("Target.createTarget", json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": at(&target, "/targetId"), "flatten": true });
        let session = browser.call("Target.attachToTarget", attach)?;
        browser.session = at(&session, "/sessionId").as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log"] {
            browser.call(&format!("{domain}.enable"), json!({}))?;
        }
        Ok(browser)
    }

    fn call(&mut self, method: &str, parameters: Value) -> Result<Value> {
        self.last += 1;
        let message = match &self.session {
            None => json!({ "id": self.last, "method": method, "params": parameters }),
            Some(session) => {
                json!({ "id": self.last, "method": method, "params": parameters, "sessionId": session })
            }
        };
        self.to.write_all(format!("{message}\0").as_bytes()).context("the browser is gone")?;
        loop {
            let mut bytes = Vec::new();
            self.from.read_until(0, &mut bytes)?;
            ensure!(bytes.pop() == Some(0), "the browser ended during {method}");
            let answer: Value = serde_json::from_slice(&bytes)?;
            if at(&answer, "/id") == &json!(self.last) {
                ensure!(answer.get("error").is_none(), "{method}: {answer}");
                return Ok(at(&answer, "/result").clone());
            }
            match at(&answer, "/method").as_str() {
                Some("Runtime.exceptionThrown") => self.complaints.push(answer.to_string()),
                Some("Log.entryAdded") if at(&answer, "/params/entry/level") == "error" => {
                    self.complaints.push(answer.to_string());
                }
                _ => {}
            }
        }
    }

    /// Sets the size of the window, and whether the user prefers dark colours.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn look(&mut self, width: u32, height: u32, dark: bool) -> Result<()> {
        let size = json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500 });
        self.call("Emulation.setDeviceMetricsOverride", size)?;
        let scheme = if dark { "dark" } else { "light" };
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.call("Emulation.setEmulatedMedia", media).map(drop)
    }

    /// Opens a page.
    ///
    /// # Errors
    /// It cannot be opened.
    pub fn open(&mut self, url: &str) -> Result<()> {
        let done = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(done.get("errorText").is_none(), "{url}: {done}");
        Ok(())
    }

    /// What an expression comes to in the page.
    ///
    /// # Errors
    /// It throws.
    pub fn value(&mut self, expression: &str) -> Result<Value> {
        let asked = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let done = self.call("Runtime.evaluate", asked)?;
        ensure!(done.get("exceptionDetails").is_none(), "{expression}: {done}");
        Ok(at(&done, "/result/value").clone())
    }

    /// Waits until an expression is true.
    ///
    /// # Errors
    /// It is not within a minute; with the text of the page.
    pub fn wait_for(&mut self, expression: &str) -> Result<()> {
        let until = Instant::now() + Duration::from_secs(60);
        // An expression may throw as long as the page is loading.
        while !self.value(expression).is_ok_and(|value| value == true) {
            if Instant::now() > until {
                let text = self.value("document.body.innerText")?;
                bail!("not within a minute: {expression}\n{text}\n{:?}", self.complaints);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(())
    }

    /// A picture of what is seen, as PNG.
    ///
    /// # Errors
    /// The browser is gone.
    pub fn picture(&mut self) -> Result<Vec<u8>> {
        let picture = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let data = at(&picture, "/data").as_str().context("no picture")?;
        Ok(base64::engine::general_purpose::STANDARD.decode(data)?)
    }

    /// Errors that the page has raised: exceptions, what its policy refused.
    #[must_use]
    pub fn complaints(&self) -> &[String] {
        &self.complaints
    }
}

/// What stands at a place of an answer; null if nothing does.
fn at<'v>(value: &'v Value, place: &str) -> &'v Value {
    value.pointer(place).unwrap_or(&Value::Null)
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It ends with its pipe, and its children with it.
        let _ = self.call("Browser.close", json!({}));
        self.child.kill().ok();
        self.child.wait().ok();
    }
}
