(() => {
  const questions = [...document.querySelectorAll("article.question")];
  const links = [...document.querySelectorAll("nav.chooser a")];
  if (questions.length < 2) return;
  const choose = () => {
    const chosen = questions.find((question) => "#" + question.id === location.hash) || questions[0];
    questions.forEach((question, index) => {
      question.classList.toggle("chosen", question === chosen);
      if (question === chosen) links[index].setAttribute("aria-current", "true");
      else links[index].removeAttribute("aria-current");
    });
  };
  document.documentElement.classList.add("choosing");
  addEventListener("hashchange", () => {
    if (location.hash === "#episodes") return;
    choose();
    document.querySelector("article.chosen").scrollIntoView();
  });
  choose();
})();
