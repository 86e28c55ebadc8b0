"""Style sheet of the report: light and dark, wide and narrow."""

STYLE = """
:root {
  color-scheme:light dark; --bg:#fbfbfd; --card:#fff; --ink:#1c2330; --soft:#5c677a; --line:#e2e6ee; --accent:#2563eb;
  --warn:#b45309; --warnbg:#fef3c7;
}
@media (prefers-color-scheme:dark) {
  :root{--bg:#0f131a;--card:#171d27;--ink:#e5e9f0;--soft:#98a4b8;--line:#2a3342;--accent:#7aa8ff;--warn:#fbbf24;--warnbg:#3a2c0c}
}
*{box-sizing:border-box}
html{scroll-behavior:smooth}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.6 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
.layout{max-width:1240px;margin:0 auto;padding:0 20px;display:grid;grid-template-columns:190px minmax(0,1fr);gap:40px}
nav{position:sticky;top:0;align-self:start;padding:44px 0;font-size:14px}
nav a{display:block;padding:4px 0;color:var(--soft);text-decoration:none}
nav a:hover{color:var(--accent)}
main{padding:36px 0 80px;min-width:0}
h1{font-size:30px;line-height:1.2;margin:0 0 6px}
h2{font-size:21px;margin:52px 0 10px;padding-top:14px;border-top:1px solid var(--line)}
h3{font-size:16px;margin:26px 0 8px}
p{margin:8px 0;max-width:76ch}
.soft,caption,figcaption{color:var(--soft)}
small,.soft{font-size:14px}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:22px 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:12px;padding:14px 16px}
.card b{display:block;font-size:23px;line-height:1.25;font-variant-numeric:tabular-nums}
.card span{color:var(--soft);font-size:13px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:12px;margin:12px 0}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:7px 14px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
tr:last-child td{border-bottom:0}
th{color:var(--soft);font-weight:600;font-size:13px}
td.wide{white-space:normal;min-width:260px;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(380px,100%),1fr));gap:14px;margin:14px 0}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:12px;padding:12px 14px}
figcaption{font-size:14px;margin-bottom:4px}
figure svg{display:block;width:100%;height:auto}
details{background:var(--card);border:1px solid var(--line);border-radius:12px;margin:8px 0;padding:8px 14px}
summary{cursor:pointer;overflow-wrap:anywhere}
pre{white-space:pre-wrap;overflow-wrap:anywhere;font:13px/1.5 ui-monospace,"DejaVu Sans Mono",monospace;margin:8px 0}
.tag{display:inline-block;background:var(--warnbg);color:var(--warn);border-radius:6px;padding:0 7px;font-size:12px;font-weight:600}
.note{border-left:3px solid var(--warn);padding:6px 14px;background:var(--card);border-radius:0 10px 10px 0}
@media (max-width:820px) {
  .layout{display:block;padding:0 14px}
  nav{position:static;padding:18px 0 0;columns:2}
  main{padding-top:18px}
  h1{font-size:25px}
  th,td{padding:6px 10px}
}
"""
