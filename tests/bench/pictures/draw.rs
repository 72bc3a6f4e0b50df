//! The pictures as SVG. Each has a ground of its own, so that it can be read on any page, and follows the reader's choice
//! of light or dark.

use std::fmt::Write as _;

/// Width of a picture, in CSS pixels: that of GitHub's README.
const WIDTH: f64 = 860.0;

/// Left end of what is drawn, behind the names.
const LEFT: f64 = 210.0;

/// Right end of what is drawn.
const RIGHT: f64 = WIDTH - 24.0;

/// Time that `stop` shows, in milliseconds before and after the signal.
const SHOWN: (f64, f64) = (-8.0, 22.0);

/// Width of a bar of `stop`, in milliseconds, and how many there are.
const BIN: f64 = 0.5;
const BINS: usize = 60;

const STYLE: &str = "text{font:13px system-ui,-apple-system,'Segoe UI',Helvetica,Arial,sans-serif;fill:#57606a}\
    .g{fill:#fff;stroke:#d0d7de}.b{font-weight:600;fill:#1f2328}.t{font-size:16px}.s{font-size:12px}\
    .a{fill:#7a9fd6}.l{fill:#d1242f}.i{fill:#d1242f;font-weight:600}.z{fill:#1a7f37;font-weight:600}\
    line{stroke:#d0d7de}.k{stroke:#57606a;stroke-dasharray:3 3}\
    .c0{fill:#2f6fd0}.c1{fill:#8fb4ee}.c2{fill:#8c959f}.c3{fill:#c4813d}.c4{fill:#5a9e6f}.c5{fill:#a475c9}.c6{fill:#c9a227}\
    @media(prefers-color-scheme:dark){text{fill:#9198a1}.g{fill:#0d1117;stroke:#3d444d}.b{fill:#f0f6fc}.a{fill:#4a75b8}\
    .l{fill:#ff6b61}.i{fill:#ff7b72}.z{fill:#3fb950}line{stroke:#3d444d}.k{stroke:#9198a1}}";

/// What is drawn so far.
struct Svg(String);

impl Svg {
    fn new(height: f64, title: &str, below: &str) -> Svg {
        let mut svg = Svg(String::new());
        let _ = write!(
            svg.0,
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" \
             viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">\n<title>{}</title>\n<style>{STYLE}</style>\n\
             <rect class=\"g\" x=\".5\" y=\".5\" width=\"{}\" height=\"{}\" rx=\"8\"/>\n",
            escaped(title),
            WIDTH - 1.0,
            height - 1.0
        );
        svg.text(24.0, 34.0, "b t", "start", title);
        svg.text(24.0, 54.0, "s", "start", below);
        svg
    }

    fn text(&mut self, x: f64, y: f64, class: &str, anchor: &str, text: &str) {
        let text = escaped(text);
        let _ = writeln!(
            self.0,
            "<text x=\"{x:.1}\" y=\"{y:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{text}</text>"
        );
    }

    fn rect(&mut self, class: &str, x: f64, y: f64, width: f64, height: f64) {
        let _ = writeln!(
            self.0,
            "<rect class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\"/>"
        );
    }

    fn line(&mut self, class: &str, from: (f64, f64), to: (f64, f64)) {
        let ((x1, y1), (x2, y2)) = (from, to);
        let _ =
            writeln!(self.0, "<line class=\"{class}\" x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\"/>");
    }

    fn end(mut self) -> String {
        self.0.push_str("</svg>\n");
        self.0
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

/// How one server was stopped.
pub struct Row {
    pub name: String,
    pub signal: String,
    /// Requests lost in a stop, the least and the most of all runs.
    pub lost: (u64, u64),
    /// From the signal to the exit, in milliseconds.
    pub exit: Option<f64>,
    /// Of each request when it was sent, in milliseconds after the signal, and whether it was answered.
    pub events: Vec<(f64, bool)>,
}

/// Requests answered and lost around a signal.
pub struct Picture {
    pub runs: usize,
    pub clients: usize,
    /// Where and when it was.
    pub machine: String,
    pub rows: Vec<Row>,
}

impl Picture {
    pub fn draw(&self) -> String {
        const TOP: f64 = 112.0;
        const ROW: f64 = 84.0;
        let height = TOP + ROW * count(self.rows.len()) + 34.0;
        let below = "Above each line: requests that were answered, by the time at which they were sent. Below it, in red: requests lost.";
        let mut svg = Svg::new(height, "Requests around a stop", below);
        let run = format!("{} clients in a closed loop on loopback; {}", self.clients, self.machine);
        svg.text(24.0, 72.0, "s", "start", &run);
        let bins: Vec<_> = self.rows.iter().map(|row| bins(&row.events)).collect();
        let most = bins.iter().flatten().fold((1.0_f64, 10.0_f64), |most, bin| (most.0.max(bin.0), most.1.max(bin.1)));
        for (number, (row, bins)) in self.rows.iter().zip(&bins).enumerate() {
            self.row(&mut svg, row, bins, most, TOP + ROW * count(number));
        }
        let bottom = height - 34.0;
        svg.line("k", (x(0.0), TOP - 10.0), (x(0.0), bottom));
        svg.text(x(0.0), TOP - 14.0, "s", "middle", "signal");
        let mut tick = SHOWN.0;
        while tick <= SHOWN.1 {
            let label = if tick == 0.0 { "0 ms".to_owned() } else { format!("{tick:+.0}").replace('-', "\u{2212}") };
            svg.text(x(tick), bottom + 18.0, "s", "middle", &label);
            tick += 2.0;
        }
        svg.end()
    }

    fn row(&self, svg: &mut Svg, row: &Row, bins: &[(f64, f64)], most: (f64, f64), top: f64) {
        const ABOVE: f64 = 44.0;
        const BELOW: f64 = 26.0;
        let (base, (least, greatest)) = (top + ABOVE, row.lost);
        svg.text(24.0, top + 20.0, "b", "start", &row.name);
        let (class, lost) = match (least, greatest) {
            (0, 0) => ("z", "0 lost".to_owned()),
            _ if least == greatest => ("i", format!("{least} lost")),
            _ => ("i", format!("{least} to {greatest} lost")),
        };
        let stops = if self.runs == 1 { "in one stop".to_owned() } else { format!("in each of {} stops", self.runs) };
        svg.text(24.0, top + 39.0, class, "start", &lost);
        svg.text(24.0, top + 56.0, "s", "start", &format!("{stops}, {}", row.signal));
        for (number, (answered, lost)) in bins.iter().enumerate() {
            let left = x(SHOWN.0 + count(number) * BIN);
            let width = x(SHOWN.0 + BIN) - x(SHOWN.0) - 0.8;
            if *answered > 0.0 {
                let height = (answered / most.0 * ABOVE).max(1.0);
                svg.rect("a", left, base - height, width, height);
            }
            if *lost > 0.0 {
                svg.rect("l", left, base + 1.0, width, (lost / most.1 * BELOW).max(3.0));
            }
        }
        svg.line("", (LEFT, base), (RIGHT, base));
        let Some(exit) = row.exit else { return };
        let (at, said) = (x(exit.min(SHOWN.1)), format!("exit after {exit:.0} ms"));
        if exit < SHOWN.1 {
            svg.line("", (at, base - 16.0), (at, base + 6.0));
        }
        if at + 110.0 < RIGHT {
            svg.text(at + 5.0, base - 5.0, "s", "start", &said);
        } else {
            svg.text(at - 5.0, base - 5.0, "s", "end", &said);
        }
    }
}

/// Where a time is drawn.
fn x(ms: f64) -> f64 {
    LEFT + (ms - SHOWN.0) / (SHOWN.1 - SHOWN.0) * (RIGHT - LEFT)
}

/// How many requests were answered and lost, for each bar.
fn bins(events: &[(f64, bool)]) -> Vec<(f64, f64)> {
    let mut bins = vec![(0.0, 0.0); BINS];
    for (at, answered) in events {
        let place = ((at - SHOWN.0) / BIN).floor();
        if let Some(bin) =
            (0..BINS).find(|number| (count(*number) - place).abs() < 0.5).and_then(|number| bins.get_mut(number))
        {
            *(if *answered { &mut bin.0 } else { &mut bin.1 }) += 1.0;
        }
    }
    bins
}

#[expect(clippy::cast_precision_loss, reason = "numbers of rows, bars and letters")]
fn count(number: usize) -> f64 {
    number as f64
}

/// A table of numbers.
pub struct Table {
    title: String,
    below: String,
    columns: Vec<String>,
    groups: Vec<(String, Vec<f64>)>,
}

impl Table {
    /// From a text with tables as `cargo bench` prints them: of the one whose first cell is `part` the rows whose first cell
    /// ends with `: what`. The first line of the text says where it was. `None` if there are no such rows.
    pub fn find(text: &str, part: &str, what: &str, title: &str) -> Option<Table> {
        let below = text.lines().find(|line| !line.trim().is_empty())?.trim().to_owned();
        let cells = |line: &str| -> Vec<String> {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()
        };
        let mut lines = text.lines().skip_while(|line| cells(line).first().is_none_or(|cell| cell != part));
        let named = |name: String| match name.as_str() {
            "native" | "tiny-http" => format!("allout, {name}"),
            _ => name,
        };
        let columns: Vec<String> = cells(lines.next()?).into_iter().skip(1).map(named).collect();
        let rows = lines.take_while(|line| line.starts_with('|')).map(cells);
        let suffix = format!(": {what}");
        let groups: Vec<_> = rows
            .filter_map(|row| {
                let name = row.first()?.strip_suffix(&suffix)?.to_owned();
                let numbers = row.iter().skip(1).map(|cell| cell.replace(',', "").parse().unwrap_or(f64::NAN));
                Some((name, numbers.take(columns.len()).collect()))
            })
            .collect();
        (!groups.is_empty()).then(|| Table { title: title.to_owned(), below, columns, groups })
    }

    /// The colour of a column: allout's are blue, whichever they are.
    fn colour(&self, column: usize) -> &'static str {
        let is_ours = |name: &&String| name.starts_with("allout");
        let before = &self.columns[..column];
        if self.columns.get(column).as_ref().is_some_and(is_ours) {
            ["c0", "c1"][before.iter().filter(is_ours).count() % 2]
        } else {
            ["c2", "c3", "c4", "c5", "c6"][before.iter().filter(|name| !is_ours(name)).count() % 5]
        }
    }

    pub fn draw(&self) -> String {
        const TOP: f64 = 96.0;
        const BAR: f64 = 17.0;
        const GAP: f64 = 20.0;
        const LABEL: f64 = 130.0;
        let group = |numbers: usize| BAR * count(numbers) + GAP;
        let height = TOP + self.groups.iter().map(|(_, numbers)| group(numbers.len())).sum::<f64>() + 8.0;
        let mut svg = Svg::new(height, &self.title, &self.below);
        let mut left = 24.0;
        for (number, name) in self.columns.iter().enumerate() {
            svg.rect(self.colour(number), left, 68.0, 11.0, 11.0);
            svg.text(left + 16.0, 78.0, "s", "start", name);
            left += 36.0 + 6.3 * count(name.chars().count());
        }
        let most = self.groups.iter().flat_map(|(_, numbers)| numbers).copied().fold(1.0, f64::max);
        let mut top = TOP;
        for (name, numbers) in &self.groups {
            svg.text(24.0, top + BAR * count(numbers.len()) / 2.0 + 4.0, "b", "start", name);
            for (number, value) in numbers.iter().enumerate().filter(|(_, value)| !value.is_nan()) {
                let width = value / most * (RIGHT - LABEL - 70.0);
                svg.rect(self.colour(number), LABEL, top + BAR * count(number), width, BAR - 3.0);
                let label = grouped(*value);
                svg.text(LABEL + width + 6.0, top + BAR * count(number) + 11.0, "s", "start", &label);
            }
            top += group(numbers.len());
        }
        svg.end()
    }
}

/// `12,345`; `0.25` below ten.
fn grouped(value: f64) -> String {
    if value < 10.0 {
        return format!("{value:.2}");
    }
    let digits = format!("{value:.0}");
    let mut grouped = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}
