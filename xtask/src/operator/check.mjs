// check.mjs WORKDIR OBJECTS.json: each object of the Prometheus operator in that list against the operator's own Go types, as
// @kubernetes-models/prometheus-operator has them: keys by the TypeScript compiler, values by the validators made from them.
import fs from 'node:fs';
import path from 'node:path';
import { execFileSync } from 'node:child_process';
import { pathToFileURL } from 'node:url';

const [work, file] = process.argv.slice(2);
const objects = JSON.parse(fs.readFileSync(file, 'utf8')).filter((o) => o.apiVersion?.startsWith('monitoring.coreos.com/'));
const models = '@kubernetes-models/prometheus-operator/monitoring.coreos.com/v1';
const problems = [];
const named = (o) => `${o.kind} ${o.metadata?.name}`;
const lines = objects.map((o) => `{ const x: import('${models}').I${o.kind} = ${JSON.stringify(o)}; void x; }`);
fs.writeFileSync(path.join(work, 'gen.ts'), [...lines, 'export {};', ''].join('\n'));
fs.writeFileSync(path.join(work, 'load.mjs'), `export * from '${models}';\n`);
try {
  const tsc = path.join(work, 'node_modules/typescript/bin/tsc');
  execFileSync('node', [tsc, '--noEmit', '--strict', '--skipLibCheck', '--moduleResolution', 'bundler', '--module', 'esnext', '--target', 'es2022', 'gen.ts'], { cwd: work, encoding: 'utf8' });
} catch (e) {
  for (const line of (e.stdout || String(e)).split('\n')) {
    const at = /^gen\.ts\((\d+),\d+\): error TS\d+: (.*)/.exec(line);
    if (at) problems.push(`${named(objects[at[1] - 1])}: ${at[2]}`);
    else if (/^\s+/.test(line) && problems.length) problems[problems.length - 1] += `\n   ${line}`;
  }
  if (!problems.length) problems.push(String(e.stdout || e));
}
const kinds = await import(pathToFileURL(path.join(work, 'load.mjs')));
for (const o of objects) {
  try {
    new kinds[o.kind](o).validate();
  } catch (e) {
    problems.push(`${named(o)}: ${e.message}`);
  }
}
problems.forEach((p) => console.error(p));
console.log(`${objects.length} objects of the Prometheus operator, ${problems.length ? `${problems.length} problems` : 'ok'}`);
process.exit(problems.length ? 1 : 0);
