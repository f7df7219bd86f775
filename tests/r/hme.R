# Rscript tests/r/hme.R : maximum-likelihood fits by mixtools::hmeEM (one x, two experts) and by flexmix (two x, or
# three experts), with the same answers polished by optim; writes tests/r/hme.json. README.md says what is what.
source("tests/r/common.R")
suppressMessages({library(mixtools); library(MASS)})

simulate <- function(seed, n, draw, gate, expert, sd) {
  set.seed(seed)
  x <- round(as.matrix(draw(n)), 4); X <- cbind(1, x)
  k <- max.col(X %*% cbind(gate, 0) - log(-log(matrix(runif(n * length(sd)), n))), "first")  # Gumbel: a draw of softmax
  list(x = x, y = round(rowSums(X * t(expert)[k, ]) + sd[k] * rnorm(n), 4))
}
data(list = c("tonedata", "NOdata", "CO2data"), package = "mixtools"); data(NPreg, package = "flexmix")
air <- na.omit(airquality[, c("Ozone", "Temp", "Wind")])
real <- function(x, y) list(x = unname(as.matrix(x)), y = as.numeric(y))
uniform <- function(n) runif(n, -2, 2)

by_hmeEM <- list(
  sim_cross = c(simulate(11, 200, uniform, c(0.3, 0.8), cbind(c(1, 1.5), c(-1, -1)), c(0.5, 0.6)), source = "simulated"),
  sim_parallel = c(simulate(12, 300, uniform, c(-0.2, 0.6), cbind(c(1.2, 1), c(-1, 1)), c(0.5, 0.5)), source = "simulated"),
  sim_spread = c(simulate(13, 250, uniform, c(0.4, -0.7), cbind(c(0, 0.5), c(0.5, 1)), c(0.25, 1.5)), source = "simulated"),
  sim_normal_x = c(simulate(14, 400, rnorm, c(-0.5, -0.9), cbind(c(2, -1), c(-0.5, 0.8)), c(0.7, 0.4)), source = "simulated"),
  arxiv_wide = c(simulate(15, 300, runif, c(-8, 25), cbind(c(15, -20), c(-5, 20)), c(0.8, 0.9)),
                 source = "simulated at the truth of arXiv 2305.03288 but for sd 0.8 and 0.9: that one overflows hmeEM",
                 budget = 10000),
  tonedata = c(real(tonedata$stretchratio, tonedata$tuned), source = "mixtools tonedata: tuned on stretchratio"),
  NOdata = c(real(NOdata$NO, NOdata$Equivalence), source = "mixtools NOdata: Equivalence on NO"),
  CO2data = c(real(CO2data$GNP, CO2data$CO2), source = "mixtools CO2data: CO2 on GNP"),
  NPreg = c(real(NPreg$x, NPreg$yn), source = "flexmix NPreg: yn on x"),
  crabs = c(real(crabs$CL, crabs$RW), source = "MASS crabs: RW on CL"),
  cars = c(real(cars$speed, cars$dist), source = "datasets cars: dist on speed"),
  airquality = c(real(air$Wind, air$Ozone), source = "datasets airquality, rows without NA: Ozone on Wind"))
square <- function(n) matrix(runif(2 * n, -2, 2), n)
by_flexmix <- list(
  arxiv_2305_03288 = c(simulate(16, 300, runif, c(-8, 25), cbind(c(15, -20), c(-5, 20)), c(0.3, 0.4)),
                       source = "simulated at the truth of arXiv 2305.03288"),
  sim_plane = c(simulate(21, 300, square, c(0.2, 0.9, -0.5), cbind(c(1, 1, -0.5), c(-1, -0.5, 1)), c(0.5, 0.6)),
                source = "simulated"),
  faithful = c(real(faithful$waiting, faithful$eruptions), source = "datasets faithful: eruptions on waiting"),
  airquality_plane = c(real(air[, c("Temp", "Wind")], air$Ozone),
                       source = "datasets airquality, rows without NA: Ozone on Temp and Wind"),
  sim_three = c(simulate(22, 350, uniform, cbind(c(0.2, -1), c(0.1, 0.8)), cbind(c(-3, 0.5), c(0, -1.2), c(3, 0.8)),
                         c(0.5, 0.4, 0.6)), source = "simulated", experts = 3))

# hmeEM from P; NULL where it gave up or threw its start away (restarts > 0: it went on from a random one instead)
hme <- function(x, y, P, epsilon, maxit, keep_restarted = FALSE) {
  args <- list(y = y, x = x, epsilon = epsilon, maxit = maxit)
  if (!is.null(P)) args <- c(args, list(beta = rbind(P$intercept, t(P$slope)), sigma = sqrt(P$variance),
                                        w = c(P$gate_bias[1], P$gate_slope[1, ])))
  invisible(capture.output(a <- tryCatch(do.call(hmeEM, args), error = function(e) NULL)))
  if (is.null(a) || (a$restarts > 0 && !keep_restarted)) return(NULL)
  fit <- layout(cbind(as.vector(a$w), 0), unname(a$beta), a$sigma^2)
  if (!all(is.finite(unlist(fit)))) return(NULL)
  list(parameters = fit, loglik = loglik(fit, x, y), iterations = length(a$all.loglik) - 1)
}
# From its own answer again and again, until 500 iterations (or the least number that rounding lets through) gain < 1e-10
tighten <- function(x, y, fit, budget) {
  chunk <- 500; used <- 0
  while (used < budget) {
    new <- hme(x, y, fit$parameters, -1, chunk)        # epsilon -1: a gain of 0 does not end it
    used <- used + chunk
    if (is.null(new)) {                                # rounding made its log-likelihood fall: fewer iterations at once
      if (chunk == 1) return(c(fit, list(used = used, converged = TRUE)))
      chunk <- chunk %/% 2
      next
    }
    gain <- new$loglik - fit$loglik
    if (gain > 0) fit <- new
    if (gain < 1e-10) return(c(fit, list(used = used, converged = TRUE)))
  }
  c(fit, list(used = used, converged = FALSE))
}

fit_hmeEM <- function(d, seed, starts = 20, screen = 2000) {
  set.seed(seed)
  fits <- lapply(seq_len(starts), function(i)          # odd ones: hmeEM's own random start
    hme(d$x, d$y, if (i %% 2 == 0) random_start(d$x, d$y, 2), 1e-10, screen, TRUE))
  fits <- Filter(Negate(is.null), fits)
  if (!length(fits)) stop("hmeEM ends with an error from every start")
  tops <- lapply(fits, function(f) polish(f$parameters, d$x, d$y))
  height <- sapply(tops, function(t) if (t$interior) t$loglik else -Inf)
  own <- sapply(fits, `[[`, "loglik")
  basin <- height > max(height) - 1e-6
  best <- which(basin)[which.max(own[basin])]
  fit <- tighten(d$x, d$y, fits[[best]], d$budget %or% 60000)
  list(fit = fit, starts = starts, reached = sum(abs(own - fit$loglik) < 1e-6), basin = sum(basin))
}

# flexmix with two changes of fitting, none of the model: its sigma divides by n - p, here by n (maximum likelihood),
# and nnet's multinomial fit of the gate runs to reltol 1e-15 in place of 1e-8.
driver <- FLXMRglm()
driver@fit <- function(x, y, w, component) {
  f <- lm.wfit(x, y, w = w)
  driver@defineComponent(para = list(coef = coef(f), df = ncol(x) + 1, sigma = sqrt(sum(w * f$residuals^2) / sum(w))))
}
gates <- function(formula) {
  g <- FLXPmultinom(formula); loose <- g@fit
  g@fit <- function(x, y, w, ...) loose(x, y, w, maxit = 2000, abstol = 0, reltol = 1e-15)
  g
}
fit_flexmix <- function(d, seed, starts = 10) {
  set.seed(seed)
  K <- d$experts %or% 2; D <- data.frame(y = d$y, x = I(d$x))
  fits <- lapply(seq_len(starts), function(i) {
    P <- random_start(d$x, d$y, K); t <- terms(unlayout(P), cbind(1, d$x), d$y)
    f <- tryCatch(flexmix(y ~ x, D, cluster = exp(t$joint - t$density), model = driver, concomitant = gates(~x),
                          control = list(iter.max = 5000, tolerance = 1e-15, minprior = 0)), error = function(e) NULL)
    if (is.null(f) || f@k != K) return(NULL)
    # concomitant@coef comes from nnet::multinom at its loose default: take the gate from one more tight step instead
    eta <- log(f@concomitant@fit(f@concomitant@x, posterior(f)))
    gate <- qr.coef(qr(cbind(1, d$x)), eta - eta[, K])
    P <- layout(unname(gate), unname(parameters(f)[seq_len(1 + ncol(d$x)), ]), parameters(f)["sigma", ]^2)
    list(parameters = P, loglik = loglik(P, d$x, d$y), reported = f@logLik, used = f@iter, converged = f@converged)
  })
  fits <- Filter(Negate(is.null), fits)
  tops <- lapply(fits, function(f) polish(f$parameters, d$x, d$y))
  height <- sapply(tops, function(t) if (t$interior) t$loglik else -Inf)
  own <- sapply(fits, `[[`, "loglik")
  basin <- height > max(height) - 1e-6
  best <- which(basin)[which.max(own[basin])]
  list(fit = fits[[best]], starts = starts, reached = sum(abs(own - own[best]) < 1e-6), basin = sum(basin))
}

record <- function(name, d, seed, by) {
  began <- Sys.time()
  K <- d$experts %or% 2
  found <- if (by == "hmeEM") fit_hmeEM(d, seed) else fit_flexmix(d, seed)
  if (by == "hmeEM") second <- fit_flexmix(d, seed + 500, 5)$fit$loglik
  top <- polish(found$fit$parameters, d$x, d$y)
  set.seed(seed + 1000); seen <- search_best(d$x, d$y, K, 60)
  message(sprintf("%-18s n %3d  %s %.12f  polished +%.1e  gradient %.0e  curvature %.1e  reached %d, basin %d of %d  iterations %d %s | flexmix %+.1e search %.9f %d/%d next %.4f  (%.0f s)",
    name, length(d$y), by, found$fit$loglik, top$loglik - found$fit$loglik, top$gradient, top$curvature, found$reached,
    found$basin, found$starts, found$fit$used, found$fit$converged, if (by == "hmeEM") second - top$loglik else 0, seen$best, seen$reached, seen$starts, seen$next_best,
    as.numeric(Sys.time() - began, units = "secs")))
  if (!top$interior || top$curvature <= 0) stop(name, ": not an interior maximum")
  c(list(name = name, source = d$source, by = by, n = length(d$y), experts = K, x = d$x, y = d$y,
       parameters = found$fit$parameters, loglik = found$fit$loglik, converged = found$fit$converged,
       iterations = found$fit$used, starts = found$starts, starts_reached = found$reached, starts_basin = found$basin,
       polished = top$loglik, polished_parameters = top$parameters, polished_gradient = top$gradient, search = seen),
    if (by == "hmeEM") list(flexmix = second))
}
sets <- c(Map(function(name, d, seed) record(name, d, seed, "hmeEM"), names(by_hmeEM), by_hmeEM, 100 + seq_along(by_hmeEM)),
          Map(function(name, d, seed) record(name, d, seed, "flexmix"), names(by_flexmix), by_flexmix, 200 + seq_along(by_flexmix)))
write_json(list(made_by = "Rscript tests/r/hme.R", versions = versions("mixtools", "flexmix", "nnet", "MASS"),
                sets = unname(sets)), "tests/r/hme.json")
