// What is in force, what lies on disk, and the switch.

import { useState } from "preact/hooks";

import { post } from "../api.js";
import { Diff } from "../diff.js";
import {
  Badge, Button, Card, Dialog, Digest, Empty, ErrorBox, html, Loading, MODE_TONES, place, Table, Time, useAction, useData,
} from "../ui.js";

const DISK_MS = 30000; // each look compiles; what changes is seen by the server, and tells itself in the status

/** A question before something that all users feel; the reason goes on record. */
function Confirm({ title, children, path, body = {}, say, danger = false, onDone, onClose }) {
  const [reason, setReason] = useState("");
  const doing = useAction(async () => {
    const done = await post(path, reason.trim() ? { ...body, reason: reason.trim() } : body);
    onDone(done);
  });
  const submit = (event) => {
    event.preventDefault();
    doing.run();
  };
  return html`<${Dialog} title=${title} onClose=${onClose}>
    <form onSubmit=${submit}>
      ${children}
      <label for="reason">Reason, for the record</label>
      <input id="reason" value=${reason} maxlength="500" autocomplete="off" onInput=${(event) => setReason(event.target.value)} />
      <${ErrorBox} error=${doing.error} />
      <div class="dialog-actions">
        <${Button} onClick=${onClose}>Cancel<//>
        <button type="submit" class=${`button ${danger ? "danger" : "primary"}`} disabled=${doing.busy}>${say}</button>
      </div>
    </form>
  <//>`;
}

function Switch({ status, ask }) {
  if (status.off) {
    return html`<${Card} tone="danger" title="Steering is switched off"
      about=${html`by ${status.off.actor}, <${Time} at=${status.off.time} />${status.off.reason ? `: ${status.off.reason}` : ""}. Answers are the model's own.`}
      actions=${html`<${Button} kind="primary" onClick=${() => ask("on")}>Switch on<//>`} />`;
  }
  return null;
}

function InForce({ status, ask }) {
  const rows = status.policies.map((policy) => ({
    key: policy.name,
    cells: [
      html`<strong>${policy.name}</strong>`,
      html`<${Badge} tone=${MODE_TONES[policy.mode]}>${policy.mode}<//>`,
      html`<${Digest} value=${policy.revision} />`,
      policy.owner || "–",
      policy.generation ?? "–",
      policy.rules,
      policy.exceptions,
    ],
  }));
  const acknowledged = status.acknowledged
    ? html`A token was computed under it.`
    : html`No token was computed under it yet.`;
  return html`<${Card} title=${status.off ? "Loaded, not in force" : "In force"}
    about=${html`Revision <${Digest} value=${status.loaded} /> from <code>${status.source}</code>. ${acknowledged}`}
    actions=${html`${status.off ? null : html`<${Button} kind="danger" onClick=${() => ask("off")}>Switch off<//>`}`}>
    ${status.held && html`<p class="note">An older set is held. It stays until the files change or somebody reloads.</p>`}
    ${rows.length
      ? html`<${Table} label="Policies" numbers=${[4, 5, 6]} rows=${rows}
          head=${["Policy", "Mode", "Revision", "Owner", "Generation", "Rules", "Exceptions"]} />`
      : html`<${Empty} title="No policies">Put one into <code>${status.source}</code>, or save one from the Steer tab.<//>`}
  <//>`;
}

function Rules({ revision }) {
  const { data, error } = useData("/-/rules", { on: revision });
  if (error) return html`<${ErrorBox} error=${error} />`;
  if (!data || !data.rules.length) return null;
  const rows = data.rules.map((rule) => ({
    key: `${rule.name} ${rule.layer}`,
    cells: [
      html`<strong>${rule.name}</strong>`,
      place(rule.layer),
      html`<dl class="inline">${Object.entries(rule.after).map(([name, value]) => html`<div><dt>${name}</dt><dd>${value}</dd></div>`)}</dl>`,
    ],
  }));
  return html`<${Card} title="Rules" about="What each adds or watches, layer by layer.">
    <${Table} label="Rules" head=${["Rule", "Where", "What"]} rows=${rows} />
  <//>`;
}

function Disk({ status, ask }) {
  const last = status.last_reload;
  const { ok, refused } = status.reloads;
  const { data: plan, error } = useData("/-/plan", { every: DISK_MS, on: `${ok} ${refused} ${status.loaded}` });
  const actions = html`<${Button} onClick=${() => ask("reload")}>Reload<//>`;
  if (error) {
    return html`<${Card} tone="warning" title="On disk" about="A reload would be refused; what is in force stays." actions=${actions}>
      <${ErrorBox} error=${error} />
    <//>`;
  }
  if (!plan) return html`<${Card} title="On disk"><${Loading} what="what lies on disk" /><//>`;
  const since = last && html`Last reload <${Time} at=${last.time} />, by ${last.trigger}${last.error ? ": refused" : ""}. `;
  const counts = `${ok} done, ${refused} refused since the start.`;
  return html`<${Card} title="On disk" actions=${actions}
    about=${html`${plan.changes ? "Not what is in force: a reload would change this." : "The same as what is loaded."} ${since}${counts} Noticed by ${status.hints}.`}>
    ${plan.changes && html`<${Diff} diff=${plan.diff} />`}
  <//>`;
}

function Kept({ status, ask }) {
  if (!status.kept.length) return null;
  const rows = status.kept.map((kept) => ({
    key: kept.revision,
    cells: [
      html`<${Digest} value=${kept.revision} />`,
      html`<${Time} at=${kept.time} />`,
      kept.policies.join(", "),
      kept.revision === status.loaded
        ? html`<span class="quiet">loaded</span>`
        : html`<${Button} kind="small" onClick=${() => ask("rollback", kept.revision)}>Go back to it<//>`,
    ],
  }));
  return html`<${Card} title="Earlier revisions" about="Kept in the state directory; going back is on record.">
    <${Table} label="Earlier revisions" head=${["Revision", "Kept", "Policies", ""]} rows=${rows} />
  <//>`;
}

const QUESTIONS = {
  off: ["Switch all steering off?", "Switch off", "From the next token on, every answer is the model's own. It stays off over a restart."],
  on: ["Switch steering on?", "Switch on", "From the next token on, answers are under the loaded policies again."],
  reload: ["Reload the policies?", "Reload", "What lies on disk is checked, compiled and swapped in; if any of it is wrong, nothing changes."],
  rollback: ["Go back to this revision?", "Go back", "It is held until the files change or somebody reloads."],
};

export function Policies({ status, reload }) {
  const [asked, setAsked] = useState(null);
  const [said, setSaid] = useState("");
  if (!status) return html`<${Loading} what="policies" />`;
  const ask = (what, to) => {
    setSaid("");
    setAsked({ what, to });
  };
  const done = (answer) => {
    setAsked(null);
    setSaid(answer.note || { off: "Switched off.", on: "Switched on." }[asked.what] || (answer.changed ? "Swapped in." : "Nothing changed."));
    reload();
  };
  const question = asked && QUESTIONS[asked.what];
  return html`<div class="stack">
    <p class=${said ? "said" : "hidden"} role="status">${said}</p>
    <${Switch} status=${status} ask=${ask} />
    <${InForce} status=${status} ask=${ask} />
    <${Disk} status=${status} ask=${ask} />
    <${Rules} revision=${status.loaded} />
    <${Kept} status=${status} ask=${ask} />
    ${asked && html`<${Confirm} title=${question[0]} say=${question[1]} danger=${asked.what === "off"}
      path=${`/-/${asked.what}`} body=${asked.to ? { to: asked.to } : {}} onDone=${done} onClose=${() => setAsked(null)}>
      <p>${question[2]}</p>
      ${asked.to && html`<p>Revision <code>${asked.to}</code></p>`}
    <//>`}
  </div>`;
}
