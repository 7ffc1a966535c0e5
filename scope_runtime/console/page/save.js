// A trial becomes a policy file: named, shown as a difference, and written only then.

import { useEffect, useState } from "preact/hooks";

import { post } from "./api.js";
import { Diff, TextDiff } from "./diff.js";
import { Button, Dialog, ErrorBox, html, useAction } from "./ui.js";

function Name({ settings, onSettings, onNext, onClose, looking }) {
  const field = (name) => (event) => onSettings({ ...settings, [name]: event.target.value });
  const submit = (event) => {
    event.preventDefault();
    onNext();
  };
  return html`<form onSubmit=${submit}>
    <div><label for="policy-name">Name</label>
      <input id="policy-name" required value=${settings.name} autocomplete="off" spellcheck="false" onInput=${field("name")} aria-describedby="name-help" />
      <p id="name-help" class="about">The file is called so, too. A policy of this name is replaced, after a look at the difference.</p></div>
    <div><label for="policy-about">What it is for</label>
      <input id="policy-about" value=${settings.description} autocomplete="off" onInput=${field("description")} /></div>
    <${ErrorBox} error=${looking.error} />
    <div class="dialog-actions">
      <${Button} onClick=${onClose}>Cancel<//>
      <button type="submit" class="button primary" disabled=${looking.busy}>Show the difference</button>
    </div>
  </form>`;
}

function Agree({ plan, reason, setReason, saving, onSave, onBack }) {
  const submit = (event) => {
    event.preventDefault();
    onSave();
  };
  return html`<form onSubmit=${submit}>
    <h3>${plan.digest ? "Changes" : "New file"} <code>${plan.file}</code></h3>
    <${TextDiff} lines=${plan.lines} />
    <h3>What changes for requests</h3>
    <${Diff} diff=${plan.diff} />
    <div><label for="save-reason">Reason, for the record</label>
      <input id="save-reason" value=${reason} maxlength="500" autocomplete="off" onInput=${(event) => setReason(event.target.value)} /></div>
    <${ErrorBox} error=${saving.error} />
    <div class="dialog-actions">
      <${Button} onClick=${onBack}>Back<//>
      <button type="submit" class="button primary" disabled=${saving.busy}>Save and reload</button>
    </div>
  </form>`;
}

export function Save({ settings, rules, onSettings, onDone, onClose }) {
  const [plan, setPlan] = useState(null);
  const [reason, setReason] = useState("");
  const looking = useAction(async () => {
    const draft = await post("/-/draft", { ...settings, rules });
    const found = await post("/-/edit", { file: draft.file, text: draft.text });
    setPlan({ ...found, text: draft.text, name: draft.file });
  });
  const saving = useAction(async () => {
    const body = { file: plan.name, text: plan.text, expected: plan.digest, reason: reason.trim() || null };
    onDone(await post("/-/save", body));
  });
  useEffect(() => {
    document.querySelector("dialog input")?.focus();
  }, [plan]);
  return html`<${Dialog} title=${plan ? "Save this policy?" : "Save as policy"} wide=${Boolean(plan)} onClose=${onClose}>
    ${plan
      ? html`<${Agree} plan=${plan} reason=${reason} setReason=${setReason} saving=${saving} onSave=${() => saving.run()} onBack=${() => setPlan(null)} />`
      : html`<${Name} settings=${settings} onSettings=${onSettings} looking=${looking} onNext=${() => looking.run()} onClose=${onClose} />`}
  <//>`;
}
