# Shared by hme.R and density.R: the log-likelihood in plain R, and JSON with every digit (jsonlite stops at 15).
options(digits = 17)
suppressMessages(library(flexmix))

`%or%` <- function(a, b) if (is.null(a)) b else a
versions <- function(...) c(list(R = paste(R.version$major, R.version$minor, sep = ".")),
                            sapply(c(...), function(p) as.character(packageVersion(p)), simplify = FALSE))

number <- function(v) {
  if (!is.finite(v)) return("null")
  for (digits in 15:17) { s <- sprintf("%.*g", digits, v); if (as.numeric(s) == v) return(s) }
  s
}
# A list with names is an object, one without an array; a matrix is a list of its rows; I(vector) stays an array of one.
json <- function(v, depth = 0) {
  pad <- strrep(" ", depth + 1)
  if (is.list(v)) {
    inner <- vapply(v, json, "", depth = depth + 1)
    if (is.null(names(v))) return(paste0("[\n", pad, paste(inner, collapse = paste0(",\n", pad)), "]"))
    return(paste0("{\n", pad, paste0('"', names(v), '": ', inner, collapse = paste0(",\n", pad)), "}"))
  }
  if (is.matrix(v)) return(paste0("[", paste(apply(v, 1, function(r) json(I(r))), collapse = ", "), "]"))
  inner <- if (is.character(v)) paste0('"', v, '"') else if (is.logical(v)) tolower(v) else vapply(as.numeric(v), number, "")
  if (length(v) == 1 && !inherits(v, "AsIs")) inner else paste0("[", paste(inner, collapse = ", "), "]")
}
write_json <- function(v, file) writeLines(json(v), file)

# Parameters as matrices over experts: gate and expert have p = 1 + d rows (bias first) and a column an expert.
# `last expert's gate at 0` is the pin everywhere.
layout <- function(gate, expert, variance) {
  gate <- gate - gate[, ncol(gate)]
  list(gate_bias = unname(gate[1, ]), gate_slope = unname(t(gate[-1, , drop = FALSE])),
       intercept = unname(expert[1, ]), slope = unname(t(expert[-1, , drop = FALSE])), variance = unname(variance))
}
unlayout <- function(P) list(gate = rbind(P$gate_bias, t(P$gate_slope)), expert = rbind(P$intercept, t(P$slope)),
                             sd = sqrt(P$variance))

log_sum <- function(m) { top <- apply(m, 1, max); top + log(rowSums(exp(m - top))) }
# log gate, log joint of expert and y, and log density of every row of X (which has its column of ones)
terms <- function(q, X, y) {
  gate <- X %*% q$gate; gate <- gate - log_sum(gate)
  residual <- y - X %*% q$expert
  joint <- gate + sapply(seq_along(q$sd), function(k) dnorm(residual[, k], 0, q$sd[k], log = TRUE))
  list(gate = gate, joint = joint, residual = residual, density = log_sum(joint))
}
loglik <- function(P, x, y) sum(terms(unlayout(P), cbind(1, x), y)$density)

# The free vector: gates of all but the last expert, experts, log standard deviations.
pack <- function(P) { q <- unlayout(P); K <- length(q$sd); c(q$gate[, -K], q$expert, log(q$sd)) }
unpack <- function(theta, p, K) {
  gate <- cbind(matrix(theta[seq_len(p * (K - 1))], p), 0)
  expert <- matrix(theta[p * (K - 1) + seq_len(p * K)], p)
  list(gate = gate, expert = expert, sd = exp(theta[p * (2 * K - 1) + seq_len(K)]))
}
minus <- function(theta, X, y, K) {
  value <- -sum(terms(unpack(theta, ncol(X), K), X, y)$density)
  if (is.finite(value)) value else 1e10
}
minus_gradient <- function(theta, X, y, K) {
  q <- unpack(theta, ncol(X), K); t <- terms(q, X, y); z <- exp(t$joint - t$density)
  scaled <- sweep(t$residual, 2, q$sd, "/")
  -c(crossprod(X, (z - exp(t$gate))[, -K]), crossprod(X, z * sweep(scaled, 2, q$sd, "/")), colSums(z * (scaled^2 - 1)))
}

# x and y to mean 0 and sd 1, and parameters to and from there: BFGS wants them so.
standard <- function(x, y) {
  centre <- colMeans(x); spread <- apply(x, 2, sd); T <- diag(1 + ncol(x)); T[1, -1] <- -centre / spread
  diag(T)[-1] <- 1 / spread
  list(X = cbind(1, x) %*% T, y = (y - mean(y)) / sd(y), T = T, mean = mean(y), sd = sd(y))
}
raw <- function(theta, S, K) {
  q <- unpack(theta, ncol(S$X), K); expert <- S$sd * S$T %*% q$expert; expert[1, ] <- expert[1, ] + S$mean
  layout(S$T %*% q$gate, expert, (S$sd * q$sd)^2)
}
whitened <- function(P, S) {
  q <- unlayout(P); back <- solve(S$T); q$expert[1, ] <- q$expert[1, ] - S$mean
  pack(layout(back %*% q$gate, back %*% q$expert / S$sd, (q$sd / S$sd)^2))
}
climb <- function(theta, S, K, reltol = 1e-15)
  optim(theta, minus, minus_gradient, S$X, S$y, K, method = "BFGS", control = list(maxit = 5000, reltol = reltol))$par
# optim(BFGS) from P until it stands still, then Newton steps while they gain or shrink the gradient
polish <- function(P, x, y) {
  K <- length(P$variance); S <- standard(x, y); theta <- whitened(P, S)
  for (i in 1:5) theta <- climb(theta, S, K)
  size <- function(t) max(abs(minus_gradient(t, S$X, S$y, K)))
  hessian <- function(t) optimHess(t, minus, minus_gradient, S$X, S$y, K)
  for (i in 1:6) {
    new <- tryCatch(theta - solve(hessian(theta), minus_gradient(theta, S$X, S$y, K)), error = function(e) NULL)
    if (is.null(new) || size(new) >= size(theta) || minus(new, S$X, S$y, K) > minus(theta, S$X, S$y, K) + 1e-9) break
    theta <- new
  }
  P <- raw(theta, S, K); t <- terms(unlayout(P), cbind(1, x), y)
  list(parameters = P, loglik = loglik(P, x, y), gradient = size(theta),
       curvature = min(eigen(hessian(theta), TRUE)$values),
       interior = min(P$variance) > 1e-4 * var(y) && min(colSums(exp(t$joint - t$density))) > 5 &&
         max(abs(theta[seq_len(ncol(S$X) * (K - 1))])) < 50)
}

# A start: rows shared out over K experts by quantiles of a random direction of (x, y, noise), least squares in each.
random_start <- function(x, y, K) {
  S <- standard(x, y); n <- length(y); p <- ncol(S$X)
  repeat {
    score <- drop(S$X %*% rnorm(p)) * rexp(1) + rnorm(1) * S$y + rnorm(n) * rexp(1, 3)
    label <- as.integer(cut(rank(score) / n, c(0, sort(runif(K - 1, 0.15, 0.85)), 1)))
    if (K > 2) label <- sample(K)[label] else if (runif(1) < 0.5) label <- 3L - label
    if (min(tabulate(label, K)) < p + 3) next
    fits <- lapply(1:K, function(k) lm.fit(S$X[label == k, , drop = FALSE], S$y[label == k]))
    expert <- sapply(fits, coef); if (anyNA(expert)) next
    spread <- sapply(fits, function(f) sqrt(mean(f$residuals^2)) + 0.05)
    gate <- rbind(log(tabulate(label, K)), matrix(0, p - 1, K))
    return(raw(pack(layout(gate, expert, spread^2)), S, K))
  }
}
# The best interior maximum of `tries` BFGS runs, with none of hmeEM or flexmix in it: says whether they missed a higher one.
search_best <- function(x, y, K, tries) {
  S <- standard(x, y); values <- numeric(); best <- NULL
  for (i in seq_len(tries)) {
    theta <- tryCatch(climb(whitened(random_start(x, y, K), S), S, K, 1e-12), error = function(e) NULL)
    if (is.null(theta)) next
    P <- raw(theta, S, K); t <- terms(unlayout(P), cbind(1, x), y)
    if (min(P$variance) < 1e-4 * var(y) || min(colSums(exp(t$joint - t$density))) < 5) next
    if (max(abs(theta[seq_len(ncol(S$X) * (K - 1))])) > 50) next
    values <- c(values, loglik(P, x, y))
  }
  next_best <- values[values < max(values) - 1e-3]
  list(starts = tries, best = max(values), reached = sum(values > max(values) - 1e-6),
       next_best = if (length(next_best)) max(next_best) else NA_real_)
}
