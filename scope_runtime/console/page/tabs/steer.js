// Try changes on one question, side by side with the answer without them; keep what works as a policy.

import { useEffect, useRef, useState } from "preact/hooks";

import { post, stream } from "../api.js";
import { Picker } from "../picker.js";
import { Save } from "../save.js";
import { Badge, Button, Card, Digest, Empty, ErrorBox, html, number, useAction } from "../ui.js";

const OPS = {
  mute: { title: "Mute", about: "takes away what it adds" },
  scale: { title: "Scale", about: "times", key: "factor", min: 0, max: 4, step: 0.05, start: 0.5 },
  clamp: { title: "Clamp", about: "at most", key: "max", min: 0, max: (of) => ceil(of.max || 100), step: 0.5, start: (of) => ceil(of.max || 100) / 2 },
  amplify: { title: "Amplify", about: "share of the residual's length", key: "alpha", min: -1, max: 1, step: 0.01, start: 0.2 },
};
const DRAFT_MS = 250;

const ceil = (value) => Math.max(1, Math.ceil(value * 1.5));
const of = (value, found) => (typeof value === "function" ? value(found) : value);

function start(found, op) {
  const { key, start: value } = OPS[op];
  return { found, op, ...(key ? { [key]: of(value, found) } : {}) };
}

const opsOf = (found) => (found.feature.vector ? ["amplify"] : Object.keys(OPS));

function Rule({ rule, index, change, remove }) {
  const { found, op } = rule;
  const about = OPS[op];
  const name = found.label || found.place;
  const id = `rule-${index}`;
  return html`<li class="rule">
    <div class="rule-head">
      <div><strong>${name}</strong> <span class="quiet">${found.label ? found.place : found.file}</span></div>
      <${Button} kind="small plain" aria-label=${`Remove ${name}`} onClick=${remove}>Remove<//>
    </div>
    <div class="rule-body">
      <select aria-label=${`What is done to ${name}`} value=${op} onChange=${(event) => change(start(found, event.target.value))}>
        ${opsOf(found).map((each) => html`<option value=${each}>${OPS[each].title}</option>`)}
      </select>
      ${about.key
        ? html`<input id=${id} type="range" min=${about.min} max=${of(about.max, found)} step=${about.step} value=${rule[about.key]}
              aria-label=${`${about.title} ${name}: ${about.about}`}
              onInput=${(event) => change({ ...rule, [about.key]: Number(event.target.value) })} />
            <output for=${id}>${number(rule[about.key])}</output>`
        : html`<span class="quiet">${about.about}</span>`}
    </div>
    ${about.key && html`<p class="hint">${about.about}${op === "clamp" && found.max ? `; its recorded maximum is ${number(found.max)}` : ""}</p>`}
  </li>`;
}

/** How hard the model was pushed, of what is allowed. */
function DoseMeter({ done, limit }) {
  const most = Math.max(1, done.dose_max, limit ?? 0);
  const share = (value) => `${(100 * value) / most}%`;
  const over = limit != null && done.n_limited > 0;
  return html`<div class="dose">
    <span class="label">Dose</span>
    <div class="dose-bar" role="meter" aria-label="Largest dose at a token" aria-valuemin="0" aria-valuemax=${most} aria-valuenow=${done.dose_max}>
      <div class=${`dose-fill ${over ? "over" : ""}`} style=${{ width: share(done.dose_max) }}></div>
      ${limit != null && html`<div class="dose-limit" style=${{ left: share(limit) }}></div>`}
    </div>
    <span class="dose-said">${number(done.dose_max)} at most${limit != null ? `, limit ${number(limit)}` : ""}${over ? `; cut at ${done.n_limited} tokens` : ""}</span>
  </div>`;
}

function common(a, b) {
  let n = 0;
  while (n < a.length && a[n] === b[n]) n += 1;
  return n;
}

function Answer({ title, arm, other, limit, marked }) {
  const n = marked ? common(arm.text, other.text) : arm.text.length;
  const { done, began } = arm;
  return html`<section class="answer" aria-label=${title}>
    <header><h3>${title}</h3> ${began && html`<${Digest} value=${began.revision} />`}</header>
    <p class="answer-text" data-arm=${title}>${arm.text.slice(0, n)}${n < arm.text.length && html`<mark>${arm.text.slice(n)}</mark>`}${!done && html`<span class="caret" aria-hidden="true"></span>`}</p>
    <footer role="status">
      ${done && html`<p class="quiet">${number(done.n_answer)} tokens, ended by ${done.finish_reason}${began.interventions ? `, ${began.interventions} ${began.interventions === 1 ? "rule" : "rules"} may change it` : ""}</p>`}
      ${done && limit !== undefined && html`<${DoseMeter} done=${done} limit=${limit} />`}
    </footer>
  </section>`;
}

const NOTHING = { text: "", began: null, done: null };

/** Both answers as they come. */
function useTrial() {
  const [arms, setArms] = useState(null);
  const abort = useRef(null);
  const asking = useAction(async (body) => {
    abort.current = new AbortController();
    setArms({ without: NOTHING, with: NOTHING });
    const tell = ({ arm, error, ...said }) => {
      if (error) throw Object.assign(new Error(error.message), { fields: error });
      setArms((before) => ({
        ...before,
        [arm]: said.text == null ? { ...before[arm], ...said } : { ...before[arm], text: before[arm].text + said.text },
      }));
    };
    try {
      await stream("/-/try", body, tell, abort.current.signal);
    } catch (error) {
      if (error.name !== "AbortError") throw error;
    }
  });
  useEffect(() => () => abort.current?.abort(), []);
  return { ...asking, arms, stop: () => abort.current?.abort() };
}

/** The sliders as a policy's text, which the server writes. */
function useDraft(settings) {
  const [state, setState] = useState({ draft: null, error: null });
  const asked = JSON.stringify(settings);
  useEffect(() => {
    if (!settings.rules.length) {
      setState({ draft: null, error: null });
      return undefined;
    }
    let late = false;
    const timer = setTimeout(async () => {
      try {
        const draft = await post("/-/draft", JSON.parse(asked));
        if (!late) setState({ draft, error: null });
      } catch (error) {
        if (!late) setState({ draft: null, error });
      }
    }, DRAFT_MS);
    return () => {
      late = true;
      clearTimeout(timer);
    };
  }, [asked]);
  return state;
}

function bodyOf({ found, op, ...numbers }) {
  const named = found.feature.pack ? { label: found.label } : {};
  return { op, feature: { ...found.feature, ...named }, ...numbers };
}

function Limits({ settings, set }) {
  const limited = settings.dose_max != null;
  return html`<div class="limits">
    <div>
      <label for="phase">Acts on</label>
      <select id="phase" value=${settings.phase || ""} onChange=${(event) => set({ phase: event.target.value || null })}>
        <option value="generation">the answer</option><option value="prompt">the prompt</option><option value="">both</option>
      </select>
    </div>
    <div class="grow">
      <label for="dose">Dose limit ${limited ? html`<output for="dose">${number(settings.dose_max)}</output>` : html`<span class="quiet">none</span>`}</label>
      <div class="rule-body">
        <input id="dose" type="range" min="0.05" max="1.5" step="0.05" disabled=${!limited} value=${settings.dose_max ?? 0.7}
          onInput=${(event) => set({ dose_max: Number(event.target.value) })} />
        <label class="check"><input type="checkbox" checked=${limited} onChange=${(event) => set({ dose_max: event.target.checked ? 0.7 : null })} /> limited</label>
      </div>
    </div>
  </div>`;
}

function Question({ asked, set, onAsk, busy, stop, ready }) {
  const field = (name) => (event) => set({ [name]: event.target.value });
  const submit = (event) => {
    event.preventDefault();
    onAsk();
  };
  return html`<form onSubmit=${submit} class="question">
    <label for="question">Question</label>
    <textarea id="question" required value=${asked.question} placeholder="How do I get to Suzhou?" onInput=${field("question")}></textarea>
    <div class="limits">
      <div><label for="max-tokens">Tokens, at most</label><input id="max-tokens" type="number" min="1" max="1024" value=${asked.max_tokens} onInput=${field("max_tokens")} /></div>
      <div><label for="temperature">Temperature</label><input id="temperature" type="number" min="0" max="2" step="0.1" value=${asked.temperature} onInput=${field("temperature")} /></div>
      <div><label for="seed">Seed</label><input id="seed" type="number" min="0" value=${asked.seed} onInput=${field("seed")} /></div>
      <div class="grow"><label for="base">Compared with</label>
        <select id="base" value=${asked.base} onChange=${field("base")}><option value="nothing">no policy</option><option value="in-force">what is in force</option></select></div>
    </div>
    <div class="actions">
      ${busy ? html`<${Button} onClick=${stop}>Stop<//>` : html`<button type="submit" class="button primary" disabled=${!ready}>Ask both</button>`}
    </div>
  </form>`;
}

export function Steer({ status, reload }) {
  const [rules, setRules] = useState([]);
  const [settings, setSettings] = useState({ name: "trial", description: "", phase: "generation", dose_max: 0.7 });
  const [asked, setAsked] = useState({ question: "", max_tokens: 96, temperature: 0, seed: 1, base: "nothing" });
  const [saving, setSaving] = useState(false);
  const [said, setSaid] = useState("");
  const trial = useTrial();
  const { draft, error } = useDraft({ ...settings, rules: rules.map(bodyOf) });
  const change = (i) => (rule) => setRules(rules.map((each, at) => (at === i ? rule : each)));
  const ask = () => trial.run({
    policy: draft.text,
    messages: [{ role: "user", content: asked.question }],
    on_top: asked.base === "in-force",
    max_tokens: Number(asked.max_tokens),
    temperature: Number(asked.temperature),
    seed: Number(asked.seed),
  });
  const done = (answer) => {
    setSaving(false);
    setSaid(`Saved as ${answer.file.split("/").pop()}; ${answer.changed ? "it is in force" : "nothing changed"}.${answer.note ? ` ${answer.note}` : ""}`);
    reload();
  };
  return html`<div class="steer">
    <div class="stack">
      <${Card} title="What to change" about="On the next trial alone; nobody else's answers change.">
        ${rules.length
          ? html`<ul class="rules">${rules.map((rule, i) => html`<${Rule} key=${JSON.stringify(rule.found.feature)} rule=${rule} index=${i} change=${change(i)}
              remove=${() => setRules(rules.filter((_, at) => at !== i))} />`)}</ul>`
          : html`<${Empty} title="No feature chosen">Look for one below.<//>`}
        <${Picker} chosen=${rules.map((rule) => JSON.stringify(rule.found.feature))}
          add=${(found) => setRules([...rules, start(found, opsOf(found)[0])])} />
        <${Limits} settings=${settings} set=${(some) => setSettings({ ...settings, ...some })} />
        <${ErrorBox} error=${error} />
        ${draft && html`<details><summary>The policy as text</summary><pre class="record" tabindex="0" aria-label="Policy text">${draft.text}</pre></details>`}
        <div class="actions end">
          <${Button} disabled=${!draft} onClick=${() => { setSaid(""); setSaving(true); }}>Save as policy…<//>
        </div>
        <p class=${said ? "said" : "hidden"} role="status">${said}</p>
      <//>
    </div>
    <div class="stack">
      <${Card} title="Ask">
        ${status?.off && html`<p class="note">Steering is switched off, and trials with it. Switch it on in Policies.</p>`}
        <${Question} asked=${asked} set=${(some) => setAsked({ ...asked, ...some })} onAsk=${ask} busy=${trial.busy} stop=${trial.stop}
          ready=${Boolean(draft) && !status?.off} />
        <${ErrorBox} error=${trial.error} />
      <//>
      ${trial.arms
        ? html`<div class="answers">
            <${Answer} title="Without" arm=${trial.arms.without} other=${trial.arms.with} />
            <${Answer} title="With" arm=${trial.arms.with} other=${trial.arms.without} marked limit=${settings.dose_max} />
          </div>`
        : html`<${Card}><${Empty} title="Two answers stand here">One without the change, one with it, as they are made.<//><//>`}
    </div>
    ${saving && html`<${Save} settings=${settings} rules=${rules.map(bodyOf)} onSettings=${setSettings} onDone=${done} onClose=${() => setSaving(false)} />`}
  </div>`;
}

Steer.stays = true;
