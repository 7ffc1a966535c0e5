// What changes from one set of policies to another, as `scope diff` says it.

import { html, place, short } from "./ui.js";

function kind(change) {
  if (change.before === null) return "new";
  return change.after === null ? "gone" : "changed";
}

function Lines({ change }) {
  const { before, after } = change;
  const keys = [...new Set([...Object.keys(before || {}), ...Object.keys(after || {})])]
    .filter((key) => before?.[key] !== after?.[key]);
  return html`<dl class="changes">${keys.map((key) => html`<div>
    <dt>${key}</dt>
    <dd>
      ${before?.[key] != null && html`<del>${before[key]}</del>`}
      ${before?.[key] != null && after?.[key] != null ? " → " : ""}
      ${after?.[key] != null && html`<ins>${after[key]}</ins>`}
    </dd>
  </div>`)}</dl>`;
}

function Change({ title, change }) {
  const what = kind(change);
  return html`<li class=${`change ${what}`}>
    <p><strong>${title}</strong> <span class=${`badge ${what}`}>${what}</span></p>
    <${Lines} change=${change} />
  </li>`;
}

export function Diff({ diff }) {
  const { settings, rules, files } = diff;
  if (diff.same_effect || !(settings.length + rules.length + files.length)) {
    return html`<p class="quiet">The same programs for the same requests: nothing that the model computes changes.</p>`;
  }
  return html`<ul class="diff">
    ${settings.map((one) => html`<${Change} title=${`policy ${one.name}`} change=${one} />`)}
    ${files.map((one) => html`<li class="change changed">
      <p><strong>file ${one.name}</strong></p><p><del>${short(one.before)}</del> → <ins>${short(one.after)}</ins></p>
    </li>`)}
    ${rules.map((one) => html`<${Change} title=${`${one.name}, ${place(one.layer)}`} change=${one} />`)}
  </ul>`;
}

/** Lines of a unified diff. */
export function TextDiff({ lines }) {
  const tone = (line) => ({ "+": "added", "-": "removed", "@": "where" })[line[0]] || "";
  return html`<pre class="text-diff" tabindex="0" aria-label="Changed lines">${lines.map((line) => html`<span class=${tone(line)}>${line}${"\n"}</span>`)}</pre>`;
}
