"""Models and datasets as Airflow's assets: what an author writes, and what their events say."""
