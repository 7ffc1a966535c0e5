// What happens: alerts, reloads, what rules do in live requests, and the audit log with the state of its proof.

import { useEffect, useState } from "preact/hooks";

import { get } from "../api.js";
import {
  Badge, Button, Card, Dialog, Digest, Empty, ErrorBox, html, Loading, MODE_TONES, number, place, Table, Time, useAction,
  useData, when,
} from "../ui.js";

const LIVE_MS = 2000;
const SEVERITY_TONES = { info: "info", warning: "warning", critical: "danger" };
const STATE_TONES = { firing: "danger", pending: "warning" };

/** Whose record it is; what somebody tried in Steer is no traffic, and says so. */
function Request({ of }) {
  return html`<code>${of.request_id || "–"}</code>${of.trial && html` <${Badge} tone="info">trial<//>`}`;
}

function Alerts() {
  const firing = useData("/-/alerts", { every: LIVE_MS });
  const events = useData("/-/events", { query: { kind: "alert", last: 20 }, every: LIVE_MS });
  const rows = (events.data || []).slice().reverse().map((event) => ({
    key: `${event.time} ${event.request_id} ${event.rule} ${event.what}`,
    cells: [
      html`<${Time} at=${event.time} />`,
      html`<${Badge} tone=${event.what === "firing" || event.what === "raised" ? SEVERITY_TONES[event.severity] || "warning" : ""}>${event.what}<//>`,
      [event.policy, event.rule].filter(Boolean).join("/") || "–",
      event.severity || "–",
      event.activation ? number(event.activation.max) : "–",
      html`<${Request} of=${event} />`,
    ],
  }));
  const standing = firing.data?.alerts || [];
  return html`<${Card} title="Alerts" about=${firing.error
      ? "Alerts of single requests. This process keeps none over all requests (spec.alerts)."
      : standing.length ? `${standing.length} pending or firing over all requests.` : "Nothing fires over all requests."}>
    ${standing.length > 0 && html`<ul class="chips">${standing.map((alert) => html`<li key=${alert.fingerprint}>
      <${Badge} tone=${STATE_TONES[alert.state] || ""}>${alert.state}<//> ${alert.labels?.alertname || alert.labels?.rule}
      <span class="quiet"> since <${Time} at=${alert.active_at} /></span></li>`)}</ul>`}
    <${ErrorBox} error=${events.error} />
    ${rows.length
      ? html`<${Table} label="Alert events" numbers=${[4]} head=${["When", "What", "Rule", "Severity", "Activation", "Request"]} rows=${rows} />`
      : html`<${Empty} title="No alerts">None of the latest requests raised one.<//>`}
  <//>`;
}

/** What a rule did in its latest requests: a bar for each, as high as the share of tokens that it acted on. */
function Spark({ recent }) {
  const width = 4;
  const shown = recent.slice(-32);
  const mean = shown.reduce((sum, each) => sum + each.share, 0) / shown.length;
  return html`<svg class="spark" viewBox=${`0 0 ${32 * width} 24`} role="img"
      aria-label=${`Acted on ${Math.round(100 * mean)} % of tokens over the latest ${shown.length} requests`}>
    ${shown.map((each, i) => {
      const height = Math.max(1.5, 24 * each.share);
      return html`<rect x=${(32 - shown.length + i) * width} y=${24 - height} width=${width - 1} height=${height} rx="0.5" />`;
    })}
  </svg>`;
}

function Traffic() {
  const { data, error } = useData("/-/traffic", { every: LIVE_MS });
  if (error) return html`<${Card} title="Features in live requests"><${ErrorBox} error=${error} /><//>`;
  if (!data) return html`<${Card} title="Features in live requests"><${Loading} what="traffic" /><//>`;
  const rows = data.rules.map((rule) => ({
    key: `${rule.policy}/${rule.rule} ${rule.layer} ${rule.mode}`,
    cells: [
      html`<strong>${rule.rule}</strong><br /><span class="quiet">${[rule.policy, rule.layer != null && place(rule.layer)].filter(Boolean).join(", ")}</span>`,
      html`${rule.op} <${Badge} tone=${MODE_TONES[rule.mode]}>${rule.mode}<//>`,
      rule.features.join(", "),
      html`<${Spark} recent=${rule.recent} />`,
      number(rule.n_requests),
      html`${number(rule.n_fired)} <span class="quiet">of ${number(rule.n_tokens)}</span>`,
      number(rule.activation_max),
      number(rule.dose_max),
    ],
  }));
  return html`<${Card} title="Features in live requests"
      about=${data.since ? html`${number(data.n_requests)} requests in memory, since <${Time} at=${data.since} />.` : null}>
    ${rows.length
      ? html`<${Table} label="Rules in live requests" numbers=${[4, 5, 6, 7]} rows=${rows}
          head=${["Rule", "What", "Features", "Latest requests", "Requests", "Tokens acted on", "Activation, max", "Dose, max"]} />`
      : html`<${Empty} title="No traffic yet">As soon as a request ends, its rules stand here.<//>`}
  <//>`;
}

const POLICY_TONES = { swapped: "good", refused: "danger", off: "danger", on: "good", "rolled-back": "warning", saved: "info", tried: "info" };

function Reloads() {
  const { data, error } = useData("/-/events", { query: { kind: "policy", last: 20 }, every: LIVE_MS });
  const rows = (data || []).slice().reverse().map((event) => ({
    key: `${event.time} ${event.what}`,
    cells: [
      html`<${Time} at=${event.time} />`,
      html`<${Badge} tone=${POLICY_TONES[event.what] || ""}>${event.what}<//>`,
      event.trigger || "–",
      event.actor || "–",
      event.what === "refused" ? event.message : event.revision ? html`<${Digest} value=${event.revision} />` : event.file || "–",
      event.reason || "–",
    ],
  }));
  return html`<${Card} title="Policies taken up and refused">
    <${ErrorBox} error=${error} />
    ${rows.length
      ? html`<${Table} label="Policy events" head=${["When", "What", "By way of", "Actor", "Revision", "Reason"]} rows=${rows} />`
      : html`<${Empty} title="Nothing yet" />`}
  <//>`;
}

function Verified() {
  const verifying = useAction(() => get("/-/audit/verify"));
  const [report, setReport] = useState(null);
  const verify = async () => {
    const found = await verifying.run();
    if (found) setReport({ ...found, at: Date.now() / 1000 });
  };
  return html`<div class="verified">
    <${Button} kind="small" busy=${verifying.busy} onClick=${verify}>${verifying.busy ? "Verifying…" : "Verify the log"}<//>
    <div role="status">
      ${report && html`<${Badge} tone=${report.ok ? "good" : "danger"}>${report.ok ? "whole" : "not whole"}<//>
        ${" "}<span>${report.ok
          ? `${number(report.n_records - report.first)} records in ${report.n_segments} ${report.n_segments === 1 ? "segment" : "segments"}, ${number(report.covered)} under a checkpoint`
          : [report.bad.file.split("/").pop(), report.bad.line].filter(Boolean).join(":") + `: ${report.bad.index != null ? `record ${report.bad.index} ` : ""}${report.bad.what}`},
        </span> <${Time} at=${report.at} />.
        ${report.root && html` Root <${Digest} value=${report.root} what="root" />.`}
        ${report.remarks.length > 0 && html`<ul class="remarks">${report.remarks.map((one) => html`<li>${one}</li>`)}</ul>`}`}
    </div>
    <${ErrorBox} error=${verifying.error} />
  </div>`;
}

const FIELDS = [["since", "Since", "24h, or 2026-11-21T10:00Z"], ["request", "Request", ""], ["rule", "Rule", ""], ["policy", "Policy", "name or revision"]];

function Audit({ status }) {
  const [query, setQuery] = useState({ since: "24h", request: "", rule: "", policy: "", kind: "" });
  const [found, setFound] = useState(null);
  const [record, setRecord] = useState(null);
  const asking = useAction(() => get("/-/audit", { ...query, last: 50 }));
  const search = async (event) => {
    event?.preventDefault();
    const answer = await asking.run();
    if (answer) setFound(answer);
  };
  const kept = Boolean(status?.audit);
  useEffect(() => {
    if (kept) search();
  }, [kept]);
  const set = (name) => (event) => setQuery({ ...query, [name]: event.target.value });
  if (!kept) {
    return html`<${Card} title="Audit log"><${Empty} title="No audit log">This process keeps none; start it with <code>--audit FILE</code> or <code>spec.audit</code>.<//><//>`;
  }
  const rows = (found?.records || []).map((each) => ({
    key: each.chain?.index,
    cells: [
      each.chain?.index ?? "–",
      html`<span class="nowrap">${when(each.time)}</span>`,
      `${each.kind}/${each.what}`,
      html`<${Request} of=${each} />`,
      [each.policy || each.name, each.rule].filter(Boolean).join("/") || "–",
      html`<${Button} kind="small" aria-label=${`Show record ${each.chain?.index}`} onClick=${() => setRecord(each)}>Show<//>`,
    ],
  }));
  return html`<${Card} title="Audit log" about=${html`<code>${status.audit.path}</code>`}>
    ${status.audit.error && html`<p class="error" role="alert">It cannot be written: ${status.audit.error}</p>`}
    <${Verified} />
    <form class="search" onSubmit=${search}>
      ${FIELDS.map(([name, title, hint]) => html`<div>
        <label for=${`audit-${name}`}>${title}</label>
        <input id=${`audit-${name}`} value=${query[name]} placeholder=${hint} autocomplete="off" spellcheck="false" onInput=${set(name)} />
      </div>`)}
      <div><label for="audit-kind">Kind</label>
        <select id="audit-kind" value=${query.kind} onChange=${set("kind")}>
          <option value="">any</option>${["request", "alert", "policy", "runtime"].map((kind) => html`<option>${kind}</option>`)}
        </select></div>
      <button type="submit" class="button" disabled=${asking.busy}>Search</button>
    </form>
    <${ErrorBox} error=${asking.error} />
    ${found && (rows.length
      ? html`<p class="quiet" role="status">${number(found.n_found)} records${found.n_found > rows.length ? `, the latest ${rows.length} of them` : ""}. Times are UTC.</p>
        <${Table} label="Records" numbers=${[0]} head=${["Index", "Time", "What", "Request", "Rule", "Record"]} rows=${rows} />`
      : html`<${Empty} title="No records">Nothing in the log is so.<//>`)}
    ${record && html`<${Dialog} title=${`Record ${record.chain?.index}`} wide onClose=${() => setRecord(null)}>
      <pre class="record" tabindex="0" aria-label="Record">${JSON.stringify(record, null, 2)}</pre>
      <div class="dialog-actions"><${Button} onClick=${() => setRecord(null)}>Close<//></div>
    <//>`}
  <//>`;
}

export function Activity({ status }) {
  return html`<div class="stack">
    <${Alerts} />
    <${Traffic} />
    <${Reloads} />
    <${Audit} status=${status} />
  </div>`;
}
