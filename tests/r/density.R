# Rscript tests/r/density.R : densities, log-likelihoods and posterior probabilities as flexmix has them for softmax
# gates, and as mvtnorm and dnorm have them for Gaussian gates; writes tests/r/density.json. See README.md.
source("tests/r/common.R")
suppressMessages(library(mvtnorm))

same <- function(a, b, what) if (max(abs(a - b)) > 1e-11 * max(1, abs(b))) stop(what, " is off by ", max(abs(a - b)))

# flexmix as it comes. Its numbers at its own final parameters: everything is asked for on newdata, since the fit's own
# logLik and posterior are of the last E step, before the gate was fitted once more.
softmax <- function(name, source, seed, x, y, K) {
  set.seed(seed)
  x <- as.matrix(x); D <- data.frame(y = y, x = I(x))
  fit <- stepFlexmix(y ~ x, D, k = K, nrep = 5, model = FLXMRglm(family = "gaussian"), concomitant = FLXPmultinom(~x),
                     control = list(tolerance = 1e-10, iter.max = 1000), verbose = FALSE)
  if (fit@k != K) stop(name, ": flexmix dropped an expert")
  theta <- unname(parameters(fit)); p <- 1 + ncol(x)
  P <- layout(unname(fit@concomitant@coef), theta[1:p, ], theta[p + 1, ]^2)
  unscaled <- unname(posterior(fit, newdata = D, unscaled = TRUE))
  record <- list(name = name, source = source, n = length(y), experts = K, x = unname(x), y = y, parameters = P,
                 loglik = as.numeric(logLik(fit, newdata = D)), density = rowSums(unscaled),
                 gate = unname(prior(fit, newdata = D)), posterior = unname(posterior(fit, newdata = D)),
                 mean = drop(predict(fit, newdata = D, aggregate = TRUE)[[1]]))
  t <- terms(unlayout(P), cbind(1, x), y)              # the layout of the parameters is the one README.md says
  same(record$loglik, sum(t$density), "loglik"); same(record$density, exp(t$density), "density")
  same(record$gate, exp(t$gate), "gate"); same(record$posterior, exp(t$joint - t$density), "posterior")
  message(sprintf("%-12s n %d  experts %d  loglik %.12f", name, length(y), K, record$loglik))
  record
}
data(NPreg, package = "flexmix"); some <- seq(1, 200, 2)
draw <- function(seed, n, d, gate, expert, sd) {
  set.seed(seed)
  x <- round(matrix(runif(n * d, -2, 2), n), 4); X <- cbind(1, x)
  k <- max.col(X %*% gate - log(-log(matrix(runif(n * length(sd)), n))), "first")
  list(x = x, y = round(rowSums(X * t(expert)[k, ]) + sd[k] * rnorm(n), 4))
}
line2 <- draw(31, 80, 1, cbind(c(0.3, 1), 0), cbind(c(1, 1), c(-1, -1)), c(0.5, 0.7))
line3 <- draw(32, 100, 1, cbind(c(0, -1), c(0.3, 1), 0), cbind(c(-3, 1), c(3, -1), c(0, 0.5)), c(0.5, 0.6, 0.4))
plane2 <- draw(33, 80, 2, cbind(c(0.2, 1, -0.5), 0), cbind(c(1, 1, -1), c(-1, 0.5, 0.5)), c(0.5, 0.6))
plane3 <- draw(34, 120, 2, cbind(c(0, 1, -0.5), c(0.5, -1, 0.5), 0), cbind(c(3, 1, -1), c(0, 0.5, 0.5), c(-3, 0, 1)),
               c(0.5, 0.6, 0.4))
by_flexmix <- list(
  softmax("NPreg_2", "every other row of flexmix NPreg: yn on x", 41, NPreg$x[some], NPreg$yn[some], 2),
  softmax("NPreg_3", "every other row of flexmix NPreg: yn on x", 42, NPreg$x[some], NPreg$yn[some], 3),
  softmax("line_2", "simulated", 43, line2$x, line2$y, 2), softmax("line_3", "simulated", 44, line3$x, line3$y, 3),
  softmax("plane_2", "simulated", 45, plane2$x, plane2$y, 2), softmax("plane_3", "simulated", 46, plane3$x, plane3$y, 3))

# Gaussian gates at fixed parameters: p(x, y) = sum_k weight_k N(x; centre_k, covariance_k) N(y; intercept_k + slope_k . x, variance_k)
gaussian <- function(name, seed, n, weight, centre, covariance, intercept, slope, variance) {
  set.seed(seed)
  d <- ncol(centre); K <- length(weight); each <- seq_len(K)
  x <- round(matrix(rnorm(n * d, 0, 2), n), 3); y <- round(rnorm(n, 0, 3), 3)
  log_x <- sapply(each, function(k) log(weight[k]) + dmvnorm(x, centre[k, ], matrix(covariance[[k]], d), log = TRUE))
  lines <- sapply(each, function(k) intercept[k] + drop(x %*% slope[k, ]))
  log_xy <- log_x + sapply(each, function(k) dnorm(y, lines[, k], sqrt(variance[k]), log = TRUE))
  # again with each expert's (x, y) as one Gaussian of d + 1 dimensions
  again <- sapply(each, function(k) {
    G <- matrix(covariance[[k]], d); a <- slope[k, ]; Ga <- drop(G %*% a)
    log(weight[k]) + dmvnorm(cbind(x, y), c(centre[k, ], intercept[k] + sum(a * centre[k, ])),
                             rbind(cbind(G, Ga), c(Ga, variance[k] + sum(a * Ga))), log = TRUE)
  })
  same(log_xy, again, name)
  gate <- exp(log_x - log_sum(log_x))
  message(sprintf("%-12s n %d  experts %d  loglik %.12f", name, n, K, sum(log_sum(log_xy))))
  list(name = name, n = n, experts = K, x = x, y = y,
       parameters = list(weight = weight, centre = centre, covariance = lapply(covariance, matrix, d),
                         intercept = intercept, slope = slope, variance = variance),
       loglik = sum(log_sum(log_xy)), log_joint = log_sum(log_xy), log_x = log_sum(log_x),
       log_conditional = log_sum(log_xy) - log_sum(log_x), gate = gate,
       posterior = exp(log_xy - log_sum(log_xy)), mean = rowSums(gate * lines))
}
by_hand <- list(
  gaussian("gauss_line_2", 51, 25, c(0.35, 0.65), cbind(c(-1, 1.5)), list(0.8, 2.5), c(1, -0.5), cbind(c(0.7, -1.2)), c(0.5, 1.3)),
  gaussian("gauss_line_3", 52, 25, c(0.2, 0.5, 0.3), cbind(c(-2, 0, 2.2)), list(1.1, 0.4, 3), c(0, 1, -2),
           cbind(c(1, -0.4, 0.6)), c(0.3, 2, 0.9)),
  gaussian("gauss_plane_2", 53, 25, c(0.4, 0.6), rbind(c(-1, 0.5), c(1, -0.7)),
           list(c(1, 0.4, 0.4, 0.7), c(2, -0.9, -0.9, 1.5)), c(0.5, -1), rbind(c(1, -0.5), c(-0.3, 0.8)), c(0.6, 1.1)),
  gaussian("gauss_plane_3", 54, 25, c(0.25, 0.45, 0.3), rbind(c(-2, 1), c(0, 0), c(1.5, -1.5)),
           list(c(1, 0, 0, 2), c(1.5, 0.6, 0.6, 0.5), c(0.8, -0.3, -0.3, 1.2)), c(1, 0, -2),
           rbind(c(0.5, 1), c(-1, 0.2), c(0.3, -0.7)), c(0.8, 0.4, 1.6)))

write_json(list(made_by = "Rscript tests/r/density.R", versions = versions("flexmix", "nnet", "mvtnorm"),
                softmax = by_flexmix, gaussian = by_hand), "tests/r/density.json")
