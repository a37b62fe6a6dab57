// A classic script in the head, not a module: it must run before anything is drawn.
(() => {
  const chosen = localStorage.getItem('mochi-serve.theme');
  if (chosen === 'light' || chosen === 'dark') document.documentElement.dataset.theme = chosen;
})();
