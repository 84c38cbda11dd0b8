variable "name" {
  description = "Of the budget, before -month; an account's names of budgets are the same in all regions."
  type        = string

  validation {
    condition     = can(regex("^[A-Za-z0-9._-]{1,94}$", var.name))
    error_message = "At most 94 letters, digits, ., - and _: a budget's name has 100."
  }
}

variable "cluster_name" {
  description = "The value of the tag dask-tide/cluster whose cost is summed up."
  type        = string
}

variable "monthly_usd" {
  description = "The limit, in US dollars a month."
  type        = number

  validation {
    condition     = var.monthly_usd > 0
    error_message = "The limit must be more than 0 dollars."
  }
}

variable "emails" {
  description = "Who is told, at most ten."
  type        = list(string)

  validation {
    condition     = length(var.emails) >= 1 && length(var.emails) <= 10 && alltrue([for email in var.emails : can(regex("^[^@ ]+@[^@ ]+$", email))])
    error_message = "One to ten mail addresses."
  }
}
