// Two texts: which features differ, and at which tokens they are active.

import { useState } from "preact/hooks";

import { post } from "../api.js";
import { Card, Empty, ErrorBox, html, Loading, number, place, useAction, useData } from "../ui.js";

const POOLS = { max: "their strongest token", mean: "the mean over their tokens", last: "their last token" };

/** A token is shown as it is; what cannot be seen gets a sign. */
const shown = (piece) => piece.replace(/\n/g, "↵\n").replace(/\t/g, "⇥") || "·";

function Heat({ title, pieces, values, most }) {
  const at = values.indexOf(Math.max(...values));
  const said = values[at] > 0 ? `strongest at ${JSON.stringify(pieces[at])}, ${number(values[at])}` : "not active";
  return html`<section class="answer" aria-label=${`Text ${title}`}>
    <header><h3>Text ${title}</h3><span class="quiet">${said}</span></header>
    <p class="heat">${pieces.map((piece, i) => html`<span style=${{ "--share": most > 0 ? Math.min(1, values[i] / most).toFixed(3) : 0 }}
      title=${`${JSON.stringify(piece)}, token ${i}: ${number(values[i])}`}>${shown(piece)}</span>`)}</p>
  </section>`;
}

/** Both means from one middle: A to the left, B to the right. */
function Bars({ a, b, most }) {
  const share = (value) => `${most > 0 ? (50 * value) / most : 0}%`;
  return html`<span class="bars" aria-hidden="true"><span class="bar-a" style=${{ width: share(a) }}></span><span class="bar-b" style=${{ width: share(b) }}></span></span>`;
}

const featureName = (one) => `${one.layer}:${one.id}`;

function Ranked({ found, chosen, choose }) {
  const most = Math.max(...found.differences.flatMap((one) => [one.a, one.b]));
  return html`<${Card} title="Features that differ most" level=${2}
      about=${`By ${POOLS[found.at]}; ${number(found.features_compared)} features are active in either. Choose one to see where.`}>
    <div class="scroll" tabindex="0" role="region" aria-label="Features that differ most">
      <table>
        <thead><tr><th scope="col">Feature</th><th scope="col">Where</th><th scope="col" class="number">A</th><th scope="col"><span class="hidden">A and B as bars</span></th><th scope="col" class="number">B</th></tr></thead>
        <tbody>${found.differences.map((one, i) => html`<tr key=${featureName(one)} class=${i === chosen ? "chosen" : ""}>
          <td><label class="check"><input type="radio" name="feature" checked=${i === chosen} onChange=${() => choose(i)} />
            <span>${one.label || html`<code>${featureName(one)}</code>`}</span></label></td>
          <td class="quiet nowrap">${place(one.layer === "embedding" ? -1 : one.layer)}, id ${one.id}</td>
          <td class="number">${number(one.a)}</td>
          <td><${Bars} a=${one.a} b=${one.b} most=${most} /></td>
          <td class="number">${number(one.b)}</td>
        </tr>`)}</tbody>
      </table>
    </div>
  <//>`;
}

function Found({ found }) {
  const [chosen, choose] = useState(0);
  const one = found.differences[chosen];
  if (!one) return html`<${Card}><${Empty} title="Nothing differs">No feature of these layers is active in either text.<//><//>`;
  const { a, b } = found.activations;
  const most = Math.max(...a[chosen], ...b[chosen]);
  return html`
    <${Card} title="What spiked">${found.words.map((words) => html`<p>${words}</p>`)}<//>
    <div class="compared">
      <${Ranked} found=${found} chosen=${chosen} choose=${choose} />
      <div class="stack">
        <p class="heat-title">Where <strong>${one.label || featureName(one)}</strong> is active
          <span class="heat-scale" aria-hidden="true"></span><span class="quiet">0 to ${number(most)}</span></p>
        <${Heat} title="A" pieces=${found.tokens.a} values=${a[chosen]} most=${most} />
        <${Heat} title="B" pieces=${found.tokens.b} values=${b[chosen]} most=${most} />
      </div>
    </div>`;
}

export function Compare() {
  const about = useData("/-/compare");
  const [asked, setAsked] = useState({ a: "", b: "", at: "max", chat: false });
  const [found, setFound] = useState(null);
  const comparing = useAction(() => post("/-/compare", asked));
  const set = (name) => (event) => setAsked({ ...asked, [name]: event.target.value });
  const submit = async (event) => {
    event.preventDefault();
    const answer = await comparing.run();
    if (answer) setFound({ ...answer, at: asked.at, number: (found?.number || 0) + 1 });
  };
  if (about.error) return html`<${Card} title="Compare two texts"><${ErrorBox} error=${about.error} /><//>`;
  if (!about.data) return html`<${Loading} what="what texts can be compared by" />`;
  if (!about.data.sae) {
    return html`<${Card} title="Compare two texts"><${Empty} title="Nothing to compare by">${about.data.why}<//><//>`;
  }
  const { sae, layers, reads } = about.data;
  return html`<div class="stack">
    <${Card} title="Compare two texts" about=${html`As the model reads them under what is in force, by <code>${sae}</code>, ${layers.length === 1 ? "layer" : "layers"} ${layers.join(", ")}.`}>
      ${reads && html`<p class="quiet">${reads}</p>`}
      <form onSubmit=${submit}>
        <div class="pair">
          <div><label for="text-a">Text A</label><textarea id="text-a" required maxlength="20000" value=${asked.a} placeholder="How do I get to Paris?" onInput=${set("a")}></textarea></div>
          <div><label for="text-b">Text B</label><textarea id="text-b" required maxlength="20000" value=${asked.b} placeholder="How do I get to Suzhou?" onInput=${set("b")}></textarea></div>
        </div>
        <div class="limits">
          <div><label for="pool">Texts count by</label>
            <select id="pool" value=${asked.at} onChange=${set("at")}>${Object.entries(POOLS).map(([name, said]) => html`<option value=${name}>${said}</option>`)}</select></div>
          <div class="grow"><label for="chat">Read as</label>
            <select id="chat" value=${asked.chat ? "chat" : "text"} onChange=${(event) => setAsked({ ...asked, chat: event.target.value === "chat" })}>
              <option value="text">plain text</option><option value="chat">a user's message</option></select></div>
          <div class="actions end"><button type="submit" class="button primary" disabled=${comparing.busy || !asked.a || !asked.b}>${comparing.busy ? "Comparing…" : "Compare"}</button></div>
        </div>
      </form>
      <${ErrorBox} error=${comparing.error} />
    <//>
    ${found
      ? html`<${Found} key=${found.number} found=${found} />`
      : html`<${Card}><${Empty} title="What differs stands here">Ranked features, and each text with the tokens at which one is active.<//><//>`}
  </div>`;
}

Compare.stays = true;
