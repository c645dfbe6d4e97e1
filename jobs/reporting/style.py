"""How the report of a run looks, in light and in dark as the reader's system has it."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--panel:#f6f7f9;--line:#dfe3e8;--text:#1b1f26;--quiet:#586071;
--c0:#1f6fb2;--c1:#c9722b;--c2:#3b8f5a;--c3:#7a5ba8;--c4:#a33a35;--c5:#8b95a3}
@media (prefers-color-scheme:dark){:root{--page:#14171c;--panel:#1d2128;--line:#333943;--text:#e6e9ee;--quiet:#a3adbb;
--c0:#5aa9e6;--c1:#e39a56;--c2:#6cc48c;--c3:#b79be6;--c4:#f0827b;--c5:#6b7482}}
*{box-sizing:border-box}
body{font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;background:var(--page);color:var(--text);
max-width:1080px;margin:0 auto;padding:2.2rem 1.4rem 4rem;font-variant-numeric:tabular-nums}
h1{font-size:1.7rem;line-height:1.25;margin:0;font-weight:650;overflow-wrap:anywhere}
h2{font-size:1.2rem;margin:3rem 0 .9rem;padding-top:1.1rem;border-top:1px solid var(--line);font-weight:650}
h3{font-size:1rem;margin:1.7rem 0 .5rem;font-weight:600}
p{margin:.3rem 0 .9rem;max-width:46rem}.note,figcaption{color:var(--quiet);font-size:.87rem}
code,pre{font:13px/1.5 ui-monospace,"SF Mono",Menlo,Consolas,monospace}
pre{background:var(--panel);padding:1rem;border-radius:10px;overflow-x:auto}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin-top:1.6rem}
.tile{background:var(--panel);border-radius:10px;padding:.8rem 1rem;color:var(--quiet);font-size:.87rem}
.tile b{display:block;font-size:1.5rem;line-height:1.3;color:var(--text);font-weight:650}
table{border-collapse:collapse}th,td{padding:.28rem .9rem .28rem 0;text-align:left;vertical-align:baseline;
font-weight:400}th{color:var(--quiet);font-size:.82rem;border-bottom:1px solid var(--line)}
.number{text-align:right;white-space:nowrap}.part{padding-left:1.6em;color:var(--quiet)}
.bars{width:100%}.bar{width:45%;padding-right:0;vertical-align:middle}
.bar span{display:block;height:12px;min-width:1px;border-radius:2px}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,430px),1fr));gap:1.8rem 2rem}
figure{margin:0}figcaption{margin-bottom:.2rem;overflow-wrap:anywhere}
svg{width:100%;height:auto;display:block;font-size:11px;fill:var(--quiet)}
.axis{stroke:var(--line)}.resumed{stroke:var(--c4);stroke-dasharray:4 3}.saved{stroke:var(--quiet)}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round}.line.faint{stroke-width:1;stroke-opacity:.4}
.band{fill-opacity:.22}.area{fill-opacity:.85}
.line.c0{stroke:var(--c0)}.line.c1{stroke:var(--c1)}.line.c2{stroke:var(--c2)}.line.c3{stroke:var(--c3)}
.line.c4{stroke:var(--c4)}.line.c5{stroke:var(--c5)}
.band.c0,.area.c0{fill:var(--c0)}.band.c1,.area.c1{fill:var(--c1)}.band.c2,.area.c2{fill:var(--c2)}
.band.c3,.area.c3{fill:var(--c3)}.band.c4,.area.c4{fill:var(--c4)}.band.c5,.area.c5{fill:var(--c5)}
.legend{display:flex;flex-wrap:wrap;gap:.2rem 1rem;font-size:.82rem;color:var(--quiet)}
.legend span{display:inline-flex;align-items:center;gap:.4rem}.legend i{width:11px;height:11px;border-radius:3px}
i.c0{background:var(--c0)}i.c1{background:var(--c1)}i.c2{background:var(--c2)}i.c3{background:var(--c3)}
i.c4{background:var(--c4)}i.c5{background:var(--c5)}i.faint{opacity:.45}
img{max-width:100%;border:1px solid var(--line);border-radius:6px}
@media (max-width:640px){.bar{display:none}}
"""
