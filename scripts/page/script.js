// Drop and paste anywhere, and the keyboard: Ctrl+Enter runs, Escape cancels, arrows move the line, + - 0 zoom.
(() => {
  const find = (selector) => document.querySelector(selector);

  const give = (files) => {
    const input = find("#given input[data-testid$=upload-button]");
    if (!input || !files.length) return;
    const data = new DataTransfer();
    [...files].slice(0, input.multiple ? files.length : 1).forEach((file) => data.items.add(file));
    input.files = data.files;
    input.dispatchEvent(new Event("change", { bubbles: true }));
  };
  const hasFiles = (event) => [...(event.dataTransfer?.types ?? [])].includes("Files");

  addEventListener("dragover", (event) => {
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    document.body.classList.add("dropping");
  }, true);
  addEventListener("dragleave", (event) => {
    if (!event.relatedTarget) document.body.classList.remove("dropping");
  }, true);
  addEventListener("drop", (event) => {
    document.body.classList.remove("dropping");
    if (!hasFiles(event)) return;
    event.preventDefault();
    event.stopPropagation();
    give(event.dataTransfer.files);
  }, true);
  addEventListener("paste", (event) => {
    const files = event.clipboardData?.files ?? [];
    if (!files.length) return;
    event.preventDefault();
    give(files);
  }, true);

  const moveLine = (slider, pixels) => {
    const line = slider.getBoundingClientRect();
    const [x, y] = [line.left + line.width / 2, line.top + line.height / 2];
    const event = (type, clientX) => new MouseEvent(type, { bubbles: true, cancelable: true, view: window, clientX, clientY: y });
    slider.dispatchEvent(event("mousedown", x));
    window.dispatchEvent(event("mousemove", x + pixels));
    window.dispatchEvent(event("mouseup", x + pixels));
  };
  const tell = (slider) => {
    const [line, box] = [slider.getBoundingClientRect(), slider.parentElement.getBoundingClientRect()];
    slider.setAttribute("aria-valuenow", Math.round((100 * (line.left + line.width / 2 - box.left)) / box.width));
  };
  const zoom = (slider, deltaY) => {
    const box = slider.parentElement.getBoundingClientRect();
    const [clientX, clientY] = [box.left + box.width / 2, box.top + box.height / 2];
    for (let step = 0; step < 5; step++)
      slider.parentElement.querySelector(".content").dispatchEvent(new WheelEvent("wheel", { bubbles: true, cancelable: true, deltaY, clientX, clientY }));
  };
  addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) return find("#run:not([disabled])")?.click();
    if (event.key === "Escape") {
      const closes = find(".block.fullscreen") || event.isComposing || event.target.closest?.("[role=combobox], #slider");
      return closes ? undefined : find("#cancel:not([disabled])")?.click();
    }
    const slider = event.target.closest?.("[data-testid=slider]");
    if (!slider) return;
    const keys = {
      ArrowLeft: () => moveLine(slider, event.shiftKey ? -50 : -10), ArrowRight: () => moveLine(slider, event.shiftKey ? 50 : 10),
      "+": () => zoom(slider, -1), "=": () => zoom(slider, -1), "-": () => zoom(slider, 1), 0: () => { for (let n = 0; n < 12; n++) zoom(slider, 1); },
    };
    if (!keys[event.key]) return;
    event.preventDefault();
    keys[event.key]();
    tell(slider);
  }, true); // before Gradio leaves full screen
  addEventListener("mouseup", () => document.querySelectorAll("[data-testid=slider]").forEach(tell));

  // Gradio's slider takes no focus by itself.
  new MutationObserver(() => {
    for (const slider of document.querySelectorAll("[data-testid=slider]:not([tabindex])")) {
      slider.tabIndex = 0;
      slider.setAttribute("role", "slider");
      slider.setAttribute("aria-label", "Line between the left and the right image");
      slider.setAttribute("aria-valuenow", 50);
    }
  }).observe(document, { childList: true, subtree: true });
})();
