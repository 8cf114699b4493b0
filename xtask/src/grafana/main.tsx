// Draws /dashboard.json: each panel's queries go to /api (a Prometheus), the answers through Grafana's field config into
// Grafana's components. Variables are replaced by their current values; "All" becomes .*
// Grafana's panel plugins are not published: time series, stat, bar gauge and table are its components wired by hand; the
// heat map is drawn here, in Grafana's frame, theme and units.
import React, { useEffect, useState } from 'react';
import { createRoot } from 'react-dom/client';
import * as data from '@grafana/data';
import * as ui from '@grafana/ui';
import { initPluginTranslations } from '@grafana/i18n';

const { applyFieldOverrides, createDataFrame, createTheme, dateTime, FieldType, getDisplayProcessor, getValueFormat, formattedValueToString, reduceField,
  standardEditorsRegistry, standardFieldConfigEditorRegistry, ThemeContext } = data as any;
const { BarGauge, BigValue, getStandardFieldConfigs, getStandardOptionEditors, GlobalStyles, PanelChrome, Table, TimeSeries } = ui as any;

const seconds = Number(new URLSearchParams(location.search).get('seconds'));
const to = Math.floor(Date.now() / 1000), from = to - seconds, step = Math.max(1, Math.round(seconds / 150));
const range = { from: dateTime(from * 1000), to: dateTime(to * 1000), raw: { from: `now-${seconds}s`, to: 'now' } };
const theme = createTheme({ colors: { mode: 'dark' } });
const UNIT = 38, WIDTH = 1384 / 24;

function interpolate(text: string, variables: any[]): string {
  const builtin: Record<string, string> = { __rate_interval: `${Math.max(step * 4, 10)}s`, __interval: `${step}s`, __range: `${seconds}s`, __range_s: `${seconds}` };
  const value = (name: string) => {
    if (name in builtin) return builtin[name];
    const v = variables.find((x) => x.name === name);
    if (!v) return `$${name}`; // such as the $1 of a label_replace
    const current = v?.current?.value ?? (v?.includeAll ? '$__all' : v?.type === 'custom' || v?.type === 'interval' ? v.query.split(',')[0] : undefined);
    const all = [current].flat();
    return current === undefined || current === '' ? '.*' : all.includes('$__all') ? (v.allValue || '.*') : all.join('|');
  };
  return text.replace(/\$\{(\w+)(?::\w+)?\}|\$(\w+)/g, (_, a, b) => value(a ?? b));
}

// Queries of a table side by side, as the transformations merge and organize do it.
function organized(panel: any, tables: { refId: string; rows: { metric: any; value: number }[] }[]) {
  const several = panel.targets.length > 1, rows = new Map<string, any>(), names = new Set<string>();
  for (const { refId, rows: found } of tables) for (const { metric, value } of found) {
    const key = JSON.stringify(Object.entries(metric).sort());
    Object.keys(metric).forEach((n) => names.add(n));
    rows.set(key, { ...rows.get(key), ...metric, [several ? `Value #${refId}` : 'Value']: value });
  }
  const { indexByName: order = {}, renameByName: renamed = {} } = panel.transformations?.find((t: any) => t.id === 'organize')?.options ?? {};
  const values = several ? tables.map((t) => `Value #${t.refId}`) : ['Value'];
  const columns = [...names, ...values].sort((a, b) => (order[a] ?? 99) - (order[b] ?? 99));
  const all = [...rows.values()];
  if (!all.length) return [];
  return [createDataFrame({ refId: 'A', fields: columns.map((c) => values.includes(c)
    ? { name: renamed[c] ?? c, type: FieldType.number, values: all.map((r) => r[c] ?? null), config: { custom: { minWidth: 60 } } }
    : { name: renamed[c] ?? c, type: FieldType.string, values: all.map((r) => r[c] ?? ''), config: { custom: { minWidth: 60 } } }) })];
}

async function query(panel: any, variables: any[]) {
  const tables: any[] = [];
  const frames: any[] = [], table = panel.type === 'table';
  for (const target of (panel.targets ?? []).filter((t: any) => !t.hide)) {
    const instant = target.instant || (table && !target.range);
    const expr = interpolate(target.expr, variables);
    const parameters = instant ? { query: expr, time: `${to}` } : { query: expr, start: `${from}`, end: `${to}`, step: `${step}` };
    const answer = await (await fetch(`/api/v1/query${instant ? '' : '_range'}?${new URLSearchParams(parameters)}`)).json();
    if (answer.status !== 'success') throw new Error(`${answer.error} in ${expr}`);
    const series = answer.data.result.map((s: any) => ({ metric: s.metric, values: s.values ?? [s.value] }));
    if (target.format === 'table' || table) {
      tables.push({ refId: target.refId, rows: series.map((s: any) => ({ metric: s.metric, value: +s.values.at(-1)[1] })) });
      continue;
    }
    if (target.exemplar && panel.type === 'heatmap') {
      const found = await (await fetch(`/api/v1/query_exemplars?${new URLSearchParams({ query: expr, start: `${from}`, end: `${to}` })}`)).json();
      panel.exemplars = (found.data ?? []).flatMap((d: any) => d.exemplars.map((e: any) => ({ at: e.timestamp, value: +e.value })));
    }
    for (const s of series) {
      const name = !target.legendFormat || target.legendFormat === '__auto' ? Object.entries(s.metric).map(([k, v]) => `${k}="${v}"`).join(', ') || target.expr
        : interpolate(target.legendFormat, variables).replace(/\{\{\s*(\w+)\s*\}\}/g, (_: string, k: string) => s.metric[k] ?? '');
      frames.push(createDataFrame({ refId: target.refId, name, fields: [
        { name: 'Time', type: FieldType.time, values: s.values.map((v: any) => v[0] * 1000), config: {} },
        { name: 'Value', type: FieldType.number, labels: s.metric, values: s.values.map((v: any) => +v[1]), config: { displayNameFromDS: name } }] }));
    }
  }
  if (table) frames.push(...organized(panel, tables));
  const config = panel.fieldConfig ?? {};
  const color = { mode: ['stat', 'gauge', 'bargauge', 'table'].includes(panel.type) ? 'thresholds' : 'palette-classic' };
  const given = config.defaults?.thresholds ?? { mode: 'absolute', steps: [{ color: 'green', value: null }] };
  const thresholds = { ...given, steps: given.steps.map((t: any) => ({ ...t, value: t.value ?? -Infinity })) };
  // the registry lacks the panel plugins' own (custom) options: defaults and overrides are set on the fields directly
  frames.forEach((f, i) => f.fields.forEach((x: any) => { if (x.type === FieldType.number) { x.config = { color, ...config.defaults, thresholds, ...x.config }; x.state = { seriesIndex: i }; } }));
  for (const { matcher, properties } of config.overrides ?? []) frames.forEach((f) => f.fields.forEach((x: any) => {
    const name = x.config.displayNameFromDS ?? x.name;
    const fits = matcher.id === 'byRegexp' ? new RegExp(matcher.options.replace(/^\/|\/$/g, '')).test(name) : name === matcher.options;
    if (fits && x.type === FieldType.number) properties.forEach(({ id, value }: any) => {
      if (id.startsWith('custom.')) x.config.custom = { ...x.config.custom, [id.slice(7)]: value };
      else x.config[id] = value;
    });
  }));
  const done = applyFieldOverrides({ data: frames, theme, timeZone: 'utc', fieldConfigRegistry: standardFieldConfigEditorRegistry,
    fieldConfig: { defaults: {}, overrides: [] }, replaceVariables: (x: string) => interpolate(x, variables) });
  done.forEach((f: any) => f.fields.forEach((field: any) => { field.display = getDisplayProcessor({ field, theme, timeZone: 'utc' }); }));
  return done;
}

// Buckets that are cumulative over `le`, as cells: time from left to right, bounds from bottom to top.
function Heat({ panel, frames, width, height }: any) {
  const bound = (f: any) => { const le = f.fields[1].labels.le; return le === '+Inf' ? Infinity : +le; };
  const rows = [...frames].sort((a, b) => bound(a) - bound(b)), left = 56, bottom = 18;
  const unit = (v: number) => v === Infinity ? '+Inf' : formattedValueToString(getValueFormat(panel.fieldConfig?.defaults?.unit ?? 'short')(v));
  const at = rows.map((f) => new Map(f.fields[0].values.map((t: number, i: number) => [t, f.fields[1].values[i]])));
  const cells: any[] = [], w = (width - left) / Math.max(1, seconds / step), h = (height - bottom) / rows.length;
  let most = 0;
  rows.forEach((_, r) => at[r].forEach((v: any, t: any) => {
    const inside = v - ((r && at[r - 1].get(t)) as number || 0);
    if (inside > 1e-9) { cells.push({ r, t, inside }); most = Math.max(most, inside); }
  }));
  const x = (t: number) => left + ((t / 1000 - from) / seconds) * (width - left);
  const shade = (v: number) => { const k = Math.sqrt(v / most); return `rgb(${90 + 165 * k},${40 + 150 * k},${15 + 100 * k * k})`; };
  const row = (v: number) => rows.findIndex((f) => v <= bound(f));
  const every = Math.ceil(rows.length / Math.max(2, Math.floor(height / 22)));
  return <svg width={width} height={height} fontSize={11} fill={theme.colors.text.secondary} fontFamily="sans-serif">
    {rows.map((f, r) => r % every === 0 && <text key={r} x={left - 6} y={height - bottom - r * h - h / 2 + 4} textAnchor="end">{unit(bound(f))}</text>)}
    {[0, 0.25, 0.5, 0.75].map((k) => <text key={k} x={left + k * (width - left)} y={height - 4}>{new Date((from + k * seconds) * 1000).toISOString().slice(11, 19)}</text>)}
    {cells.map(({ r, t, inside }, i) => <rect key={i} x={x(t)} y={height - bottom - (r + 1) * h} width={Math.max(1, w - 1)} height={Math.max(1, h - 1)} fill={shade(inside)} />)}
    {(panel.exemplars ?? []).map((e: any, i: number) => <circle key={i} cx={x(e.at * 1000)} cy={height - bottom - (row(e.value) + 0.5) * h} r={2.5} fill="magenta" opacity={0.7} />)}
    <line x1={left} x2={width} y1={height - bottom} y2={height - bottom} stroke={theme.colors.border.medium} /></svg>;
}

function Body({ panel, frames, width, height }: any) {
  const options = panel.options ?? {};
  if (panel.type === 'timeseries') return <TimeSeries width={width} height={height} frames={frames} timeRange={range} timeZone="utc" theme={theme}
    legend={{ showLegend: true, displayMode: 'list', placement: 'bottom', calcs: [], ...options.legend }} />;
  if (panel.type === 'heatmap') return <Heat panel={panel} frames={frames} width={width} height={height} />;
  if (panel.type === 'table') return <Table width={width} height={height} data={frames[0]} timeRange={range} />;
  const shown = frames.flatMap((f: any) => f.fields.filter((x: any) => x.type === FieldType.number).map((field: any) => {
    const calc = options.reduceOptions?.calcs?.[0] ?? 'lastNotNull';
    return { value: { ...field.display(reduceField({ field, reducers: [calc] })[calc]), title: frames.length > 1 ? field.config.displayNameFromDS : undefined }, field, time: f.fields[0] };
  }));
  const across = panel.type !== 'bargauge' && options.orientation !== 'horizontal';
  const w = across ? width / shown.length : width, h = across ? height : height / shown.length;
  return <div style={{ display: 'flex', flexDirection: across ? 'row' : 'column' }}>{shown.map((s: any, i: number) =>
    panel.type === 'stat' ? <BigValue key={i} width={w} height={h} value={s.value} theme={theme} colorMode={options.colorMode ?? 'value'} graphMode={options.graphMode ?? 'area'}
      sparkline={s.field.values.length > 1 ? { y: s.field, x: s.time } : undefined} />
    : <BarGauge key={i} width={w} height={h} value={s.value} field={s.field.config} display={s.field.display} theme={theme} orientation="horizontal" displayMode={options.displayMode ?? 'gradient'} />)}</div>;
}

const KNOWN = ['timeseries', 'stat', 'gauge', 'bargauge', 'table', 'heatmap'];
class Boundary extends React.Component<any> { // a component that throws makes its own panel an error, not the page
  state = { failed: false };
  static getDerivedStateFromError() { return { failed: true }; }
  componentDidCatch(e: any) { this.props.onError(String(e)); }
  render() { return this.state.failed ? null : this.props.children; }
}
function Panel({ panel, variables }: any) {
  const plain = panel.type === 'row' || panel.type === 'text';
  const [frames, setFrames] = useState<any>(null);
  const [error, setError] = useState(plain || KNOWN.includes(panel.type) ? '' : `no renderer for panel type "${panel.type}"`);
  useEffect(() => { if (!plain && !error) query(panel, variables).then(setFrames, (e) => setError(String(e))); }, []);
  const { x, y, w, h } = panel.gridPos, width = w * WIDTH - 8, height = h * UNIT - 8;
  const state = error ? 'error' : plain ? 'static' : !frames ? 'loading' : frames.length ? 'data' : 'empty';
  return <div data-panel={panel.id} data-state={state} data-title={panel.title ?? ''} data-note={error || (frames ? `${frames.length} series` : '')}
    style={{ position: 'absolute', left: x * WIDTH + 8, top: y * UNIT + 8, width, height }}>
    {panel.type === 'row' ? <h4>{interpolate(panel.title, variables)}</h4> : <PanelChrome title={interpolate(panel.title ?? '', variables)} description={panel.description} width={width} height={height}>{(iw: number, ih: number) =>
      error ? <div style={{ color: theme.colors.error.text }}>{error}</div>
      : panel.type === 'text' ? <pre style={{ whiteSpace: 'pre-wrap' }}>{panel.options?.content}</pre>
      : state === 'empty' ? <div style={{ textAlign: 'center', paddingTop: ih / 2 - 12 }}>No data</div>
      : state === 'data' ? <Boundary onError={setError}><Body panel={panel} frames={frames} width={iw} height={ih} /></Boundary> : null}</PanelChrome>}
  </div>;
}

(async () => {
  await initPluginTranslations('cadscope', []).catch((e: any) => console.error('i18n', e));
  standardEditorsRegistry.setInit(getStandardOptionEditors);
  standardFieldConfigEditorRegistry.setInit(getStandardFieldConfigs);
  const dashboard = await (await fetch('/dashboard.json')).json();
  const panels = dashboard.panels.flatMap((p: any) => [p, ...(p.type === 'row' && !p.collapsed ? p.panels ?? [] : [])]);
  createRoot(document.getElementById('root')!).render(<ThemeContext.Provider value={theme}><GlobalStyles />
    <div style={{ background: theme.colors.background.canvas, width: '100vw', height: '100vh' }}>
      {panels.map((p: any) => <Panel key={p.id} panel={p} variables={dashboard.templating?.list ?? []} />)}</div></ThemeContext.Provider>);
})();
