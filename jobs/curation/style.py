"""How the curation report looks, in both themes."""

STYLE = """
:root{color-scheme:light;--page:#fff;--panel:#f6f7f9;--line:#dfe3e8;--text:#1b1f26;--quiet:#586071;--all:#c3cad4;
--kept:#1f6fb2;--out:#c9722b;--mark:#a33a35}
@media (prefers-color-scheme:dark){:root:not([data-theme=light]){color-scheme:dark;--page:#14171c;--panel:#1d2128;
--line:#333943;--text:#e6e9ee;--quiet:#a3adbb;--all:#4a5361;--kept:#5aa9e6;--out:#e39a56;--mark:#f0827b}}
:root[data-theme=dark]{color-scheme:dark;--page:#14171c;--panel:#1d2128;--line:#333943;--text:#e6e9ee;--quiet:#a3adbb;
--all:#4a5361;--kept:#5aa9e6;--out:#e39a56;--mark:#f0827b}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;background:var(--page);color:var(--text);
max-width:1080px;margin:0 auto;padding:2.2rem 1.4rem 4rem;font-variant-numeric:tabular-nums}
header{display:flex;justify-content:space-between;align-items:flex-start;gap:1rem}
h1{font-size:1.7rem;line-height:1.25;margin:0;font-weight:650}
h2{font-size:1.2rem;margin:3rem 0 .9rem;padding-top:1.1rem;border-top:1px solid var(--line);font-weight:650}
h3{font-size:1rem;margin:1.7rem 0 .5rem;font-weight:600}
p{margin:.3rem 0 .9rem;max-width:46rem}
code,pre{font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace}
.note,figcaption,caption{color:var(--quiet)}.note{font-size:.87rem}
button{font:inherit;font-size:.87rem;color:var(--quiet);background:var(--panel);border:1px solid var(--line);
border-radius:8px;padding:.3rem .8rem;cursor:pointer;white-space:nowrap}
button:focus-visible,summary:focus-visible,.veil:focus-within{outline:2px solid var(--kept);outline-offset:2px}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:1.6rem}
.tile{background:var(--panel);border-radius:10px;padding:.8rem 1rem;color:var(--quiet);font-size:.87rem}
.tile b{display:block;font-size:1.5rem;line-height:1.3;color:var(--text);font-weight:650}
table{border-collapse:collapse;width:100%}caption{text-align:left;padding-bottom:.3rem;font-size:.87rem}
th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:baseline;font-weight:400}
thead th{color:var(--quiet);font-size:.82rem;border-bottom:1px solid var(--line)}
tbody th{overflow-wrap:anywhere}
.number{text-align:right;white-space:nowrap}.bar{width:38%;padding-right:0;vertical-align:middle}
.bar span{display:block;height:7px;min-width:1px;border-radius:2px}
.funnel .bar div{display:flex;height:14px}.funnel .bar span{height:14px;border-radius:0}
span.all{background:var(--all)}span.kept{background:var(--kept)}span.out{background:var(--out)}
.total th,.total td{font-weight:650;border-top:1px solid var(--line)}
.meaning{color:var(--quiet);font-size:.87rem;display:block}
.grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:1.6rem 2rem}
.pair-grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:1rem}
.legend{display:flex;flex-wrap:wrap;gap:.3rem 1.2rem;font-size:.87rem;color:var(--quiet);margin-bottom:1rem}
.legend span{display:inline-flex;align-items:center;gap:.4rem}.legend i{width:12px;height:12px;border-radius:3px}
figure{margin:0}figcaption{font-size:.87rem;margin-bottom:.2rem;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;font-size:11px;fill:var(--quiet)}
path.all{fill:var(--all)}path.kept{fill:var(--kept);fill-opacity:.78}rect.kept{fill:var(--kept)}
svg.heat{font-size:9px}rect.frame{fill:none;stroke:var(--line)}.axis{stroke:var(--line)}
.threshold{stroke:var(--mark);stroke-width:1.5;stroke-dasharray:4 3}.threshold-label{fill:var(--mark)}
.gallery{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;list-style:none;padding:0;
margin:.5rem 0}
.gallery li,.pair{background:var(--panel);border-radius:10px;padding:10px;font-size:.82rem;line-height:1.4;
overflow-wrap:anywhere}
.gallery .meaning,.pair .meaning{font-size:inherit}
.frame-box{display:flex;align-items:center;justify-content:center;height:116px;margin-bottom:6px}
.pair .sides{display:grid;grid-template-columns:1fr 1fr;gap:10px}
img{max-width:112px;max-height:112px;border-radius:4px;display:block}
.gone{color:var(--quiet);font-size:.8rem}
.clip{display:-webkit-box;-webkit-line-clamp:4;-webkit-box-orient:vertical;overflow:hidden}
.veil{cursor:pointer;overflow:hidden;border-radius:4px}.veil input{position:absolute;opacity:0}
.veil img{filter:blur(18px)}.veil input:checked+img{filter:none}
pre{background:var(--panel);padding:1rem;border-radius:10px;overflow-x:auto}
@media print{button{display:none}}
@media (max-width:640px){.bar{display:none}}
"""

# Before the body is drawn, so that the page never shows the other theme first.
THEME_SCRIPT = """
try{const t=localStorage.getItem("genlip-theme");if(t)document.documentElement.dataset.theme=t}catch(e){}
function toggleTheme(){const r=document.documentElement,
now=r.dataset.theme||(matchMedia("(prefers-color-scheme:dark)").matches?"dark":"light"),
next=now=="dark"?"light":"dark";r.dataset.theme=next;try{localStorage.setItem("genlip-theme",next)}catch(e){}}
"""
