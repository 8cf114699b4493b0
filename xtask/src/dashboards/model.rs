//! Turns rows of panels into the places, ids and options that Grafana's JSON wants.

use serde_json::{Value, json};

/// One file.
pub(crate) struct Dashboard {
    /// Part of its address and of its file's name: `fleet`.
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) description: &'static str,
    pub(super) variables: Vec<Value>,
    /// Headline and panels of each row.
    pub(super) rows: Vec<(&'static str, Vec<Panel>)>,
    /// How far it looks back when it is opened: `now-1h`.
    pub(super) from: &'static str,
}

/// What a panel draws.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Draw {
    /// One number for each series, with its course behind it.
    Stat,
    /// Lines over time.
    Lines,
    /// Filled lines on top of one another.
    Stack,
    /// Bars, the longest first.
    Bars,
    /// Buckets of a histogram over time.
    Heat,
    /// One row for each series.
    Table,
}

/// One query of a panel.
pub(super) struct Query {
    pub(super) expression: String,
    /// With `{{label}}` places.
    pub(super) legend: String,
    /// Show the traces behind the buckets.
    pub(super) exemplars: bool,
}

/// One panel.
pub(super) struct Panel {
    title: String,
    description: String,
    draw: Draw,
    unit: &'static str,
    width: u32,
    queries: Vec<Query>,
    /// Colour from this value on.
    thresholds: Vec<(f64, &'static str)>,
    /// Series of this name in this colour.
    colours: Vec<(&'static str, &'static str)>,
    /// Series of this name in this unit, on the right axis.
    right: Option<(&'static str, &'static str)>,
    /// Title and address of what a click leads to.
    links: Vec<(&'static str, &'static str)>,
    range: (Option<f64>, Option<f64>),
    /// Columns of a table: label or query, and headline.
    columns: Vec<(&'static str, &'static str)>,
    /// Units of a table's columns, by headline.
    units: Vec<(&'static str, &'static str)>,
}

impl Panel {
    pub(super) fn new(draw: Draw, title: &str, unit: &'static str, description: &str) -> Self {
        Self {
            title: title.to_owned(),
            description: description.to_owned(),
            draw,
            unit,
            width: if draw == Draw::Stat { 4 } else { 12 },
            queries: Vec::new(),
            thresholds: Vec::new(),
            colours: Vec::new(),
            right: None,
            links: Vec::new(),
            range: (Some(0.0), None),
            columns: Vec::new(),
            units: Vec::new(),
        }
    }

    pub(super) fn query(mut self, legend: &str, expression: impl Into<String>) -> Self {
        self.queries.push(Query {
            expression: expression.into(),
            legend: legend.to_owned(),
            exemplars: false,
        });
        self
    }

    /// The same, with the traces behind it.
    pub(super) fn traced(self, legend: &str, expression: impl Into<String>) -> Self {
        let mut panel = self.query(legend, expression);
        if let Some(query) = panel.queries.last_mut() {
            query.exemplars = true;
        }
        panel
    }

    pub(super) fn width(mut self, columns: u32) -> Self {
        self.width = columns;
        self
    }

    pub(super) fn thresholds(mut self, steps: &[(f64, &'static str)]) -> Self {
        self.thresholds = steps.to_vec();
        self
    }

    pub(super) fn colours(mut self, colours: &[(&'static str, &'static str)]) -> Self {
        self.colours = colours.to_vec();
        self
    }

    pub(super) fn right_axis(mut self, series: &'static str, unit: &'static str) -> Self {
        self.right = Some((series, unit));
        self
    }

    pub(super) fn link(mut self, title: &'static str, address: &'static str) -> Self {
        self.links.push((title, address));
        self
    }

    /// From 0 to 1.
    pub(super) fn share(mut self) -> Self {
        self.range = (Some(0.0), Some(1.0));
        self
    }

    pub(super) fn any_range(mut self) -> Self {
        self.range = (None, None);
        self
    }

    pub(super) fn columns(mut self, columns: &[(&'static str, &'static str)]) -> Self {
        self.columns = columns.to_vec();
        self
    }

    pub(super) fn units(mut self, units: &[(&'static str, &'static str)]) -> Self {
        self.units = units.to_vec();
        self
    }

    fn height(&self) -> u32 {
        if self.draw == Draw::Stat { 4 } else { 8 }
    }

    fn kind(&self) -> &'static str {
        match self.draw {
            Draw::Stat => "stat",
            Draw::Lines | Draw::Stack => "timeseries",
            Draw::Bars => "bargauge",
            Draw::Heat => "heatmap",
            Draw::Table => "table",
        }
    }

    fn json(&self, id: u32, (x, y): (u32, u32)) -> Value {
        let targets: Vec<_> =
            self.queries.iter().zip('A'..='Z').map(|(query, letter)| self.target(query, letter)).collect();
        let mut panel = json!({
            "id": id,
            "type": self.kind(),
            "title": self.title,
            "description": self.description,
            "datasource": datasource(),
            "gridPos": { "x": x, "y": y, "w": self.width, "h": self.height() },
            "targets": targets,
            "fieldConfig": { "defaults": self.defaults(), "overrides": self.overrides() },
            "options": self.options(),
        });
        if self.draw == Draw::Table {
            set(&mut panel, "transformations", self.transformations());
        }
        panel
    }

    fn target(&self, query: &Query, letter: char) -> Value {
        let instant = matches!(self.draw, Draw::Table | Draw::Bars);
        let format = match self.draw {
            Draw::Table => "table",
            Draw::Heat => "heatmap",
            _ => "time_series",
        };
        let mut target = json!({
            "refId": letter.to_string(),
            "datasource": datasource(),
            "editorMode": "code",
            "expr": query.expression,
            "format": format,
            "legendFormat": query.legend,
            "instant": instant,
            "range": !instant,
        });
        if query.exemplars {
            set(&mut target, "exemplar", json!(true));
        }
        target
    }

    fn defaults(&self) -> Value {
        let base = if self.thresholds.is_empty() { "text" } else { "green" };
        let mut steps = vec![json!({ "color": base, "value": null })];
        steps.extend(self.thresholds.iter().map(|(from, colour)| json!({ "color": colour, "value": from })));
        let colour = match self.draw {
            Draw::Stat | Draw::Table => "thresholds",
            Draw::Bars => "continuous-BlPu",
            _ => "palette-classic",
        };
        let mut defaults = json!({
            "unit": self.unit,
            "color": { "mode": colour },
            "thresholds": { "mode": "absolute", "steps": steps },
        });
        if let Some(min) = self.range.0 {
            set(&mut defaults, "min", json!(min));
        }
        if let Some(max) = self.range.1 {
            set(&mut defaults, "max", json!(max));
        }
        if self.unit == "short" && matches!(self.draw, Draw::Stat | Draw::Table | Draw::Bars) {
            // What `increase` extrapolates is no whole number.
            set(&mut defaults, "decimals", json!(0));
        }
        if self.unit == "percentunit" {
            set(&mut defaults, "decimals", json!(1));
        }
        if !self.links.is_empty() {
            let links = self.links.iter();
            set(
                &mut defaults,
                "links",
                links.map(|(title, url)| json!({ "title": title, "url": url })).collect(),
            );
        }
        if let Some(custom) = self.custom() {
            set(&mut defaults, "custom", custom);
        }
        defaults
    }

    fn custom(&self) -> Option<Value> {
        match self.draw {
            Draw::Lines | Draw::Stack => Some(json!({
                "drawStyle": "line",
                "lineInterpolation": if self.draw == Draw::Stack { "stepAfter" } else { "linear" },
                "lineWidth": 1,
                "fillOpacity": if self.draw == Draw::Stack { 40 } else { 8 },
                "showPoints": "auto",
                "pointSize": 4,
                "spanNulls": false,
                "stacking": { "mode": if self.draw == Draw::Stack { "normal" } else { "none" }, "group": "A" },
                "thresholdsStyle": { "mode": if self.thresholds.is_empty() { "off" } else { "dashed" } },
            })),
            Draw::Heat => Some(json!({ "hideFrom": { "legend": false, "tooltip": false, "viz": false } })),
            Draw::Table => Some(json!({ "align": "auto", "cellOptions": { "type": "auto" } })),
            Draw::Stat | Draw::Bars => None,
        }
    }

    fn overrides(&self) -> Value {
        let by_name = |name: &str, properties: Value| json!({ "matcher": { "id": "byName", "options": name }, "properties": properties });
        let colours = self.colours.iter().map(|(name, colour)| {
            by_name(name, json!([{ "id": "color", "value": { "mode": "fixed", "fixedColor": colour } }]))
        });
        let right = self.right.iter().map(|(name, unit)| {
            let matcher = json!({ "id": "byRegexp", "options": name });
            json!({ "matcher": matcher, "properties": [
                { "id": "unit", "value": unit },
                { "id": "custom.axisPlacement", "value": "right" },
                { "id": "custom.lineStyle", "value": { "fill": "dash", "dash": [6, 4] } },
                { "id": "custom.fillOpacity", "value": 0 },
            ] })
        });
        let units =
            self.units.iter().map(|(name, unit)| by_name(name, json!([{ "id": "unit", "value": unit }])));
        Value::Array(colours.chain(right).chain(units).collect())
    }

    fn options(&self) -> Value {
        let last = json!({ "calcs": ["lastNotNull"], "fields": "", "values": false });
        match self.draw {
            Draw::Stat => json!({
                "reduceOptions": last, "orientation": "auto", "textMode": "auto", "justifyMode": "auto",
                "colorMode": "value", "graphMode": "area", "wideLayout": true, "showPercentChange": false,
            }),
            Draw::Lines | Draw::Stack => json!({
                "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
            Draw::Bars => json!({
                "reduceOptions": last, "orientation": "horizontal", "displayMode": "gradient",
                "valueMode": "color", "showUnfilled": true, "minVizWidth": 8, "minVizHeight": 16,
            }),
            Draw::Heat => json!({
                "calculate": false,
                "cellGap": 1,
                "color": {
                    "mode": "scheme", "scheme": "Oranges", "fill": "dark-orange", "scale": "exponential",
                    "exponent": 0.5, "steps": 64, "reverse": false,
                },
                "exemplars": { "color": "rgba(255,0,255,0.7)" },
                "filterValues": { "le": 1e-9 },
                "legend": { "show": true },
                "rowsFrame": { "layout": "auto" },
                "showValue": "never",
                "tooltip": { "mode": "single", "yHistogram": false, "showColorScale": false },
                "yAxis": { "axisPlacement": "left", "reverse": false, "unit": self.unit },
            }),
            Draw::Table => json!({ "cellHeight": "sm", "showHeader": true }),
        }
    }

    /// Queries side by side, columns in order with their headlines.
    fn transformations(&self) -> Value {
        let order: serde_json::Map<_, _> = self
            .columns
            .iter()
            .zip(0..)
            .map(|((column, _), place)| ((*column).to_owned(), json!(place)))
            .collect();
        let names: serde_json::Map<_, _> =
            self.columns.iter().map(|(column, headline)| ((*column).to_owned(), json!(headline))).collect();
        json!([
            { "id": "merge", "options": {} },
            { "id": "organize", "options": {
                "excludeByName": { "Time": true }, "indexByName": order, "renameByName": names,
            } },
        ])
    }
}

/// Sets a key of an object.
pub(super) fn set(object: &mut Value, key: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        map.insert(key.to_owned(), value);
    }
}

/// The data source that the reader has chosen.
fn datasource() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

/// Chooses the data source.
pub(super) fn data_source_variable() -> Value {
    json!({
        "name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus",
        "includeAll": false, "multi": false, "hide": 0, "refresh": 1, "regex": "", "options": [],
        "skipUrlSync": false,
    })
}

/// Values of a label; all of them unless the reader chooses. `.*` also matches series without the label.
pub(super) fn label_variable(name: &str, label: &str, title: &str, family: &str, why: &str) -> Value {
    let mut variable = query_variable(name, label, title, family, why);
    set(&mut variable, "includeAll", json!(true));
    set(&mut variable, "multi", json!(true));
    set(&mut variable, "allValue", json!(".*"));
    set(&mut variable, "current", json!({ "text": "All", "value": "$__all" }));
    variable
}

/// One value of a label.
pub(super) fn query_variable(name: &str, label: &str, title: &str, family: &str, why: &str) -> Value {
    let query = format!("label_values({family}, {label})");
    json!({
        "name": name, "label": title, "description": why, "type": "query", "datasource": datasource(),
        "query": { "query": query, "refId": "variable" },
        "includeAll": false, "multi": false, "hide": 0, "refresh": 2, "regex": "", "sort": 1,
        "options": [], "skipUrlSync": false,
    })
}

impl Dashboard {
    /// Name of its file.
    pub(super) fn file(&self) -> String {
        format!("{}.json", self.name)
    }

    /// How many panels it has.
    pub(super) fn panels(&self) -> usize {
        self.rows.iter().map(|(_, panels)| panels.len()).sum()
    }

    /// What Grafana imports.
    pub(super) fn json(&self) -> Value {
        let mut panels = Vec::new();
        let (mut id, mut top) = (0, 0);
        for (headline, row) in &self.rows {
            id += 1;
            panels.push(json!({
                "id": id, "type": "row", "title": headline, "collapsed": false, "panels": [],
                "gridPos": { "x": 0, "y": top, "w": 24, "h": 1 },
            }));
            top += 1;
            let (mut left, mut height) = (0, 0);
            for panel in row {
                if left + panel.width > 24 {
                    (left, top, height) = (0, top + height, 0);
                }
                id += 1;
                panels.push(panel.json(id, (left, top)));
                left += panel.width;
                height = height.max(panel.height());
            }
            top += height;
        }
        json!({
            "uid": format!("cadscope-{}", self.name),
            "title": self.title,
            "description": self.description,
            "tags": ["cadscope"],
            "schemaVersion": 41,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "fiscalYearStartMonth": 0,
            "timezone": "browser",
            "time": { "from": self.from, "to": "now" },
            "timepicker": {},
            "refresh": "30s",
            "annotations": { "list": [] },
            "links": [{
                "title": "cadscope", "type": "dashboards", "tags": ["cadscope"], "asDropdown": true,
                "includeVars": true, "keepTime": true, "targetBlank": false, "icon": "external link",
                "tooltip": "The other dashboards, with the same choice", "url": "",
            }],
            "templating": { "list": self.variables },
            "panels": panels,
        })
    }
}
